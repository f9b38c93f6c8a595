"""What the record command checks before it starts: the device, its speed, its load, and whether a hub can be reached.

Introduced in chapter 1.
"""

import functools
import os
import socket
import subprocess
import sys
from urllib.parse import urlsplit

from lib.bench.measure.machine import default_device, fingerprint
from lib.bench.measure.roofline import measure_roofline
from lib.bench.measure.system_load import busiest_programs, measure_load
from lib.bench.paths import repository


@functools.cache
def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the Hugging Face hub takes a connection; where a proxy stands between, its answer is not asked for."""
    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=seconds).close()
    except OSError:
        return False
    return True


def why_busy(seconds: float = 3.0) -> str:
    """A sentence about the other programs that use this machine now; empty where it is quiet or the load unknown."""
    load = measure_load(seconds)
    if load is None or not load.disturbed:
        return ""
    programs = ", ".join(busiest_programs()) or "not visible from here"
    return f"this machine is busy: {load}. Busiest programs: {programs}."


def describe_in_a_process() -> str:
    """`describe_device`, asked for in a child: what it takes of the GPU's memory must be free when chapters run."""
    code = "from lib.bench.records.preflight import describe_device; print(describe_device())"
    paths = [str(repository()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the device could not be measured:\n{done.stderr[-2000:]}")
    return done.stdout.rstrip()


def describe_device() -> str:
    """Name, memory, driver and both ceilings, measured: a machine that is not what it should be shows here."""
    device = default_device()
    facts, ceilings = fingerprint(device), measure_roofline(device)
    memory = (facts.get("gpu") or facts["cpu"])["memory_bytes"] or 0
    driver = (facts.get("gpu") or {}).get("nvml", {}).get("driver")
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in ceilings.flops.items())
    return "\n".join([
        f"device     {facts['hardware']['label']}, {memory / 2**30:.1f} GiB" + (f", driver {driver}" if driver else ""),
        f"ceilings   {ceilings.bandwidth / 1e9:.1f} GB/s, {rates}",
        f"software   Python {facts['versions']['python']}, torch {facts['versions']['torch']}, "
        f"transformers {facts['versions']['transformers']}",
        f"commit     {facts['git']['commit'] or 'unknown'}" + (" with local changes" if facts["git"]["dirty"] else ""),
    ])  # fmt: skip
