"""Publishing 10,000 records of 500 words: seconds, records per second, and the peak memory of the process that does it.

python -m benchmarks.publish [RECORDS]
"""

import json
import os
import random
import resource
import subprocess
import sys
import time

from benchmarks.measured import fresh_home, keep, rlhf, show

WORDS = 500
"""Per record, over the prompt and two completions."""


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with fresh_home() as environment:
        rlhf(environment, "up")
        known = {**environment, **_argilla(environment)}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.publish", "--in-a-process-of-its-own", str(records)],
            env=known,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    result = json.loads(done.stdout.splitlines()[-1])
    show(f"publishing {records} records of {WORDS} words", ["", ""], list(result.items()))
    keep("publish", result)


def _argilla(environment: dict[str, str]) -> dict[str, str]:
    code = "import json; from flows import services; print(json.dumps(services.environment()))"
    told = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return {name: value for name, value in json.loads(told.stdout).items() if name.startswith("ARGILLA_")}


def _publish(records: int) -> None:
    from tqdm import tqdm

    from labeling.collection.rounds import open_round, read_sheets
    from labeling.collection.sheets import Plan
    from labeling.comparison import Completion, compare
    from labeling.question import DEFAULT_GUIDELINES, Round
    from labeling.service.connection import connect

    words = [f"word{number}" for number in range(5000)]
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    comparisons = tuple(
        compare(
            f"{n:08x}",
            [{"role": "user", "content": text(WORDS // 5)}],
            [Completion(f"{n:08x}-{k}", text(WORDS * 2 // 5)) for k in range(2)],
            seed=0,
        )
        for n in range(records)
    )
    question = Round("large", "publish", DEFAULT_GUIDELINES, options=2, min_submitted=1)
    plan = Plan(question, comparisons, ("ada",))
    client = connect(os.environ["ARGILLA_API_URL"], os.environ["ARGILLA_API_KEY"])
    with tqdm(total=records, unit="record", file=sys.stderr) as bar:

        def shown(done: int, total: int) -> None:
            bar.update(done - bar.n)

        started = time.monotonic()
        open_round(client, plan, {"ada": "a long password"}, shown)
        seconds = time.monotonic() - started
    again = time.monotonic()
    open_round(client, plan, {"ada": "a long password"})
    print(
        json.dumps(
            {
                "records": records,
                "datasets": len(read_sheets(client, plan)),
                "seconds": round(seconds, 1),
                "records_per_second": round(records / seconds, 1),
                "seconds_again_nothing_to_do": round(time.monotonic() - again, 1),
                "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-a-process-of-its-own"]:
        _publish(int(sys.argv[2]))
    else:
        main()
