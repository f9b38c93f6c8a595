"""CPU time that other programs take while a measurement runs: a busy machine makes measured times worthless.

Others' time is the busy time of all cores less the time of one process and its descendants. On Linux the busy time
comes from /proc/stat, so processes of other containers on the same machine count as well.

Introduced in chapter 1.
"""

import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

try:
    import psutil
except ImportError:  # the load is then unknown, and everything else still works
    psutil = None

# Shares are of all cores that this process may use: a daemon that matters on two cores does not matter on 64.
# On two cores 5 % is a tenth of one core, less than the difference between two quiet runs of a chapter.
MEAN_SHARE = 0.05
# A sample is busy where others take a quarter of the machine, half a core of two: every parallel region then waits for
# its slowest thread. One such sample in twenty moves a chapter's medians; a cron job of a few seconds does not.
SAMPLE_SHARE = 0.25
BUSY_SAMPLES = 0.05
INTERVAL = 1.0  # seconds between samples; one sample reads /proc once, a few milliseconds
SHORTEST = (
    0.2  # seconds; process times have a resolution of 10 ms, so a shorter sample is mostly rounding
)


@dataclass(frozen=True)
class Load:
    """What others took of the CPU in `seconds`. All shares are of `cores` cores' time, from 0 to 1.

    others_mean: over the whole time. others_max: in the worst sample. busy_samples: share of samples above
    SAMPLE_SHARE. steal: what the hypervisor gave to other virtual machines, 0 where the system does not say.
    """

    seconds: float
    cores: int
    others_mean: float
    others_max: float
    busy_samples: float
    steal: float

    @property
    def disturbed(self) -> bool:
        """Whether times measured under this load are not reliable."""
        return self.others_mean + self.steal > MEAN_SHARE or self.busy_samples > BUSY_SAMPLES

    def to_json(self) -> dict[str, Any]:
        """For a record and for the book's state: the fields, rounded, and `disturbed`."""
        data = {name: round(value, 4) for name, value in asdict(self).items()}
        return {**data, "disturbed": self.disturbed}

    def __str__(self) -> str:
        steal = f", the hypervisor took {self.steal:.0%}" if self.steal >= 0.005 else ""
        return f"other programs used {self.others_mean:.0%} of the CPU (at most {self.others_max:.0%}){steal}"


@dataclass
class _Snapshot:
    """Counters at one moment, in seconds: busy and steal over the allowed cores, and (own, own and reaped) by process."""

    time: float = field(default_factory=time.monotonic)
    busy: float = 0.0
    steal: float = 0.0
    own: dict[tuple[int, float], tuple[float, float]] = field(default_factory=dict)


class LoadMonitor:
    """Samples the load in a thread from `start` to `stop`. Run it beside the measured process, in its parent.

    pid: the root of the processes that do not count as others; default: this process. interval: seconds between
    samples; None starts no thread, and `stop` compares start and end only.
    """

    def __init__(self, pid: int | None = None, interval: float | None = INTERVAL):
        self.pid = os.getpid() if pid is None else pid
        self.interval = interval
        self._samples: list[
            tuple[float, float, float]
        ] = []  # (seconds, others, steal), both in core seconds
        self._last: _Snapshot | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> "LoadMonitor":
        self._last = _snapshot(self.pid)
        if self.interval is not None and self._last is not None:
            self._thread = threading.Thread(target=self._run, name="system-load", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> Load | None:
        """The load since `start`; None where this system does not tell it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        seconds = sum(sample[0] for sample in self._samples)
        if not seconds:
            return None
        cores = len(_cores())
        others, steal = (sum(sample[i] for sample in self._samples) for i in (1, 2))
        long = [s for s in self._samples if s[0] >= SHORTEST] or self._samples
        shares = [min(1.0, s[1] / s[0] / cores) for s in long]
        busy = sum(share > SAMPLE_SHARE for share in shares) / len(shares)
        mean, stolen = (min(1.0, value / seconds / cores) for value in (others, steal))
        return Load(seconds, cores, mean, max(shares), busy, stolen)

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            self._sample()

    def _sample(self) -> None:
        before, now = self._last, _snapshot(self.pid)
        if before is None or now is None:
            return
        others = max(0.0, now.busy - before.busy - _own_time(before, now))
        self._samples.append((now.time - before.time, others, max(0.0, now.steal - before.steal)))
        self._last = now


def measure_load(seconds: float) -> Load | None:
    """The load over the next `seconds`, sampled twice a second; None where this system does not tell it."""
    monitor = LoadMonitor(interval=0.5).start()
    time.sleep(seconds)
    return monitor.stop()


def busiest_programs(seconds: float = 1.0, count: int = 3) -> list[str]:
    """Names of the other programs that use most CPU over the next `seconds`: "ffmpeg (143 % of a core)".

    Names only: a command line may hold what its owner would not publish. Programs below 5 % are left out.
    """
    if psutil is None:
        return []
    before = _all_times()
    time.sleep(seconds)
    ours = {pid for pid, _ in _own(os.getpid())}
    used: dict[str, float] = {}
    for key, (name, now) in _all_times().items():
        if key in before and key[0] not in ours:
            used[name] = used.get(name, 0.0) + (now - before[key][1]) / seconds
    largest = sorted(used.items(), key=lambda item: -item[1])[:count]
    return [f"{name} ({share:.0%} of a core)" for name, share in largest if share >= 0.05]


def _cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return list(range(os.cpu_count() or 1))


def _snapshot(pid: int) -> _Snapshot | None:
    if psutil is None:
        return None
    result = _Snapshot()
    per_core = psutil.cpu_times(percpu=True)
    for core in (per_core[i] for i in _cores() if i < len(per_core)):
        kernel = core.system + getattr(core, "irq", 0.0) + getattr(core, "softirq", 0.0)
        result.busy += core.user + getattr(core, "nice", 0.0) + kernel
        result.steal += getattr(core, "steal", 0.0)
    result.own = _own(pid)
    # Some sandboxes report zero for every counter: the load is then unknown.
    return result if result.busy > 0 else None


def _own(pid: int) -> dict[tuple[int, float], tuple[float, float]]:
    """For the process and each of its descendants, by (pid, start): its seconds, alone and with reaped children's."""
    found = {}
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return found
    for process in processes:
        try:
            times, key = process.cpu_times(), (process.pid, process.create_time())
        except psutil.Error:  # ended between the list and the question
            continue
        alone = times.user + times.system
        reaped = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        found[key] = (alone, alone + reaped)
    return found


def _own_time(before: _Snapshot, now: _Snapshot) -> float:
    """Seconds that the own processes used between two snapshots.

    The difference of the sums counts a child that ended through its parent, which reaped it. A process that ended
    unreaped would make it too small, so it is at least what those that still run have used.
    """
    total = sum(t for _, t in now.own.values()) - sum(t for _, t in before.own.values())
    running = sum(alone - before.own.get(key, (0, 0))[0] for key, (alone, _) in now.own.items())
    return max(total, running, 0.0)


def _all_times() -> dict[tuple[int, float], tuple[str, float]]:
    found = {}
    for process in psutil.process_iter():
        try:
            times, name = process.cpu_times(), process.name()
            found[process.pid, process.create_time()] = (name, times.user + times.system)
        except psutil.Error:
            continue
    return found
