from flows import services as local


def test_three_services_answer_and_their_addresses_are_in_the_environment(services: dict[str, str]) -> None:
    found = local.status()
    assert list(found) == ["prefect", "mlflow", "argilla"]
    assert all(service.healthy and service.local for service in found.values())
    assert services["PREFECT_API_URL"] == found["prefect"].url + "/api"
    assert services["MLFLOW_TRACKING_URI"] == found["mlflow"].url
    assert services["ARGILLA_API_URL"] == found["argilla"].url


def test_up_again_leaves_the_running_ones_alone(services: dict[str, str]) -> None:
    before = {name: service.pid for name, service in local.status().items()}
    assert {name: service.pid for name, service in local.up().items()} == before
