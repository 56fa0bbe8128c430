"""kill -9 of a random one of several processes, at random moments; every run must end as one that was never killed.

    python benchmarks/distributed_kill.py --kills 20 --processes 2

Each run is killed one to three times, a random process at a random moment, and then left to finish; it is compared
with an unbroken run of as many processes: weights, the last checkpoint with optimizer state and seeds, history,
phases, TensorBoard points, test figures. All have to be equal to the bit (`deterministic: true`, CPU). The processes
that are left have to end by themselves with exit code 5, or 0 if they had nothing left to do; how long they take is
printed. The exit code is the number of failures.
"""

import argparse
import random
import shutil
import signal
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parent)]
from processes import EAGER, Crowd  # noqa: E402
from soak_kill import Tally, conclude, workplace  # noqa: E402


class Soak(Tally):
    """Runs of several processes that train together."""

    def __init__(self, crowd: Crowd, folder: Path) -> None:
        self.crowd, self.folder = crowd, folder
        began = time.monotonic()
        if any(crowd.run("train", "cfg.yaml", "--output", "unbroken")):
            raise SystemExit(crowd.said())
        self.seconds = time.monotonic() - began
        super().__init__(folder / "unbroken")
        self.noticed: list[float] = []

    def run(self) -> None:
        """One run, killed a few times and then finished."""
        self.runs += 1
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        output = self.folder / f"runs{self.runs}"
        command = ["train", "cfg.yaml", "--output", str(output), "--resume"]
        for _ in range(random.randint(1, 3)):
            if not self._kill(command):
                break
        else:
            self._check(self.crowd.run(*command), [0])
        self.compare(output, self.crowd.said)

    def _kill(self, command: list[str]) -> bool:
        """Whether it came in time."""
        victim = random.choice(self.crowd.forges)
        self.crowd.start(*command, patches=random.choice(([], [EAGER] * len(self.crowd.forges))))
        time.sleep(random.uniform(0.2, self.seconds))
        with suppress(ProcessLookupError):
            victim.send(signal.SIGKILL)
        began = time.monotonic()
        codes = self.crowd.wait()
        if -signal.SIGKILL not in codes:
            return False
        self.kills += 1
        self.noticed.append(time.monotonic() - began)
        self._check(codes, [0, 5, -signal.SIGKILL])
        return any(codes[:1])  # rank 0 had finished everything

    def _check(self, codes: list[int], allowed: list[int]) -> None:
        if not set(codes) <= set(allowed):
            self.failures.append(f"run {self.runs}: exit codes {codes}\n{self.crowd.said()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    folder = workplace()
    crowd = Crowd(folder, arguments.processes)
    soak = Soak(crowd, folder)
    while soak.kills < arguments.kills:
        soak.run()
        print(f"{soak.kills} kills, {soak.runs} runs, {soak.equal} equal, {len(soak.failures)} failures", flush=True)
    crowd.close()
    print(f"{soak.kills} kills: {soak.equal} of {soak.runs} runs ended equal to the unbroken one")
    print(f"The others ended {statistics.median(soak.noticed):.1f} s after a kill, {max(soak.noticed):.1f} s at most")
    return conclude(folder, soak.failures)


if __name__ == "__main__":
    sys.exit(main())
