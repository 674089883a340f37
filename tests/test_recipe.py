"""Recipes: one object from file to hash, overrides, and faults explained before anything runs."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from flows import lifecycle
from flows.recipe import RESERVED
from tasks.recipe import Dotted, Part, RecipeError, identity, load_recipe, stable_hash
from tasks.store import Stage


class Dog(Part):
    method: Literal["dog"] = "dog"
    bark: float = Field(default=1.0, gt=0)


class Cat(Part):
    method: Literal["cat"] = "cat"
    name: str | None = None
    purr: int = 1


class Inner(Part):
    rate: float = Field(default=0.1, gt=0)
    kind: Literal["a", "b"] = "a"


class Whole(Part):
    name: str
    inner: Inner = Inner()
    policy: list[Annotated[Dog | Cat, Field(discriminator="method")]] = [Dog()]  # noqa: RUF012
    code: Dotted | None = None
    codes: list[Dotted] = Field(default_factory=list)


def load(tmp_path: Path, text: str, *overrides: str) -> Whole:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(Whole, path, overrides)


PETS = 'name = "x"\n[[policy]]\nmethod = "dog"\n[[policy]]\nmethod = "cat"\nname = "tom"\n'


@pytest.mark.parametrize(
    ("text", "overrides", "named"),
    [
        ('name = "x"\nfoo = 1\n', (), ["unknown key 'foo'", "allowed: code, codes, inner, name, policy"]),
        ('name = "x"\n[inner]\nrat = 1\n', (), ["unknown key 'inner.rat'", "allowed: kind, rate"]),
        ('name = "x"\n[[policy]]\nmethod = "cat"\nbark = 1\n', (), ["bark", "allowed: method, name, purr"]),
        ('name = "x"\n[[policy]]\nmethod = "cow"\n', (), ["policy.0", "'dog', 'cat'"]),
        ('name = "x"\n[inner]\nkind = "c"\n', (), ["'inner.kind'", "'a' or 'b'"]),
        ('name = "x"\n[inner]\nrate = "fast"\n', (), ["'inner.rate'", "number"]),
        ('name = "x"\n[inner]\nrate = -1\n', (), ["'inner.rate'", "greater than 0"]),
        ("", (), ["'name' is missing"]),
        ("name = ", (), ["not valid TOML"]),
        ('name = "x"\ncode = "nowhere.at:all"\n', (), ["'code'", "cannot be imported"]),
        ('name = "x"\ncode = "json:nothing"\n', (), ["'code'", "has no 'nothing'"]),
        ('name = "x"\n', ("inner.rate",), ["has no '='"]),
        ('name = "x"\n', ("name.deeper.key=1",), ["'name' is not a table", "check the key"]),
        (PETS, ("policy.cow.bark=1",), ["no entry 'cow'"]),
        (PETS, ("policy.bark=1",), ["say which entry"]),
    ],
)
def test_a_fault_names_its_key_and_what_is_allowed(
    tmp_path: Path, text: str, overrides: tuple[str, ...], named: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    for part in named:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_is_named_as_the_recipe_writes_it(tmp_path: Path) -> None:
    """Not with the tags that tell a union's members: `policy.0.dog.bark` is no key."""
    with pytest.raises(RecipeError, match=r"'policy\.0\.bark': Input should be greater than 0"):
        load(tmp_path, PETS, "policy.0.bark=0")
    with pytest.raises(RecipeError, match=r"unknown key 'policy\.1\.claws' \(allowed: method, name, purr\)"):
        load(tmp_path, PETS, "policy.1.claws=4")


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'inner.rate'.*unknown key 'bar'"):
        load(tmp_path, 'name = "x"\nbar = 1\n[inner]\nrate = 0\n')


def test_a_list_whose_entries_are_at_fault_is_not_said_to_be_too_short(tmp_path: Path) -> None:
    class Listing(Part):
        inner: tuple[Inner, ...] = Field(min_length=1)

    (tmp_path / "a.toml").write_text("[[inner]]\nrate = 0\n")
    (tmp_path / "b.toml").write_text("inner = []\n")
    with pytest.raises(RecipeError, match=r"a.toml: 'inner.0.rate': [^;]*$"):
        load_recipe(Listing, tmp_path / "a.toml")
    with pytest.raises(RecipeError, match=r"'inner': .* at least 1 item"):
        load_recipe(Listing, tmp_path / "b.toml")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(Whole, tmp_path / "none.toml")


def test_overrides_reach_tables_and_list_entries(tmp_path: Path) -> None:
    recipe = load(tmp_path, PETS, "inner.rate=1e-4", "policy.dog.bark=2", "policy.tom.purr=3", "inner.kind=b", "name=y")
    assert recipe.inner == Inner(rate=1e-4, kind="b")
    assert recipe.policy == [Dog(bark=2), Cat(name="tom", purr=3)]
    assert recipe.name == "y"
    assert load(tmp_path, PETS, "policy.1.purr=4").policy[1] == Cat(name="tom", purr=4)


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "below.toml").write_text(PETS + '[inner]\nrate = 0.5\nkind = "b"\n')
    recipe = load(tmp_path, 'extends = "below.toml"\n[inner]\nrate = 0.25\n[[policy]]\nmethod = "dog"\n')
    assert recipe.inner == Inner(rate=0.25, kind="b"), "tables are merged"
    assert recipe.policy == [Dog()], "lists are replaced"
    assert recipe.name == load_recipe(Whole, tmp_path / "below.toml").name


def test_a_recipe_that_extends_itself_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml cannot be read"):
        load(tmp_path, 'extends = "none.toml"\n')
    with pytest.raises(RecipeError, match="'extends' must name another recipe"):
        load(tmp_path, 'extends = "recipe.toml"\n')


def test_identity_changes_with_values_and_with_the_code_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "judging.py"
    module.write_text("def score(row, text):\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    one = Whole(name="x", code="judging:score")
    several = Whole(name="x", codes=["judging:score"])
    before = stable_hash(identity(one)), stable_hash(identity(several))
    assert stable_hash(identity(Whole(name="x", code="judging:score"))) == before[0]
    assert stable_hash(identity(Whole(name="y", code="judging:score"))) != before[0]
    module.write_text("def score(row, text):\n    return 2.0\n")
    assert stable_hash(identity(one)) != before[0]
    assert stable_hash(identity(several)) != before[1]


def test_an_unstable_value_is_refused_not_guessed() -> None:
    with pytest.raises(ValueError):
        stable_hash({"rate": float("nan")})
    with pytest.raises(TypeError):
        stable_hash({"path": Path("x")})


def test_no_policy_can_go_by_the_name_of_a_stage() -> None:
    stages = {value.name for value in vars(lifecycle).values() if isinstance(value, Stage)}
    assert stages - {stage.name for stage in lifecycle.OPTIMISE.values()} < RESERVED and len(stages) > 10
