from __future__ import annotations

import time
from dataclasses import replace

import pytest

from slimdeploy.toolchain.measure import conditions, load


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def jetson(root):
    write(root, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    write(root, "proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\n")
    write(root, "proc/meminfo", "MemTotal:        7802116 kB\nMemFree: 1 kB\n")
    write(root, "proc/loadavg", "0.25 0.50 0.75 1/200 4242\n")
    write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.0, GCID: 37537400\nmore\n")
    for cpu in range(2):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "schedutil\n")
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", "1510400\n")
    write(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(root, "sys/class/thermal/thermal_zone0/temp", "48250\n")
    write(root, "sys/class/thermal/thermal_zone1/type", "tj-thermal\n")  # this one refuses to be read
    write(root, "sys/class/devfreq/17000000.gpu/cur_freq", "624750000\n")


def test_a_jetson_is_read_from_its_files(tmp_path):
    jetson(tmp_path)
    machine = conditions.machine(tmp_path)
    assert machine["device"] == machine["cpu"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine["memory_mb"] == 7619
    assert machine["l4t"] == "36.4.0"
    assert conditions.state(tmp_path) == {
        "load_average": [0.25, 0.5, 0.75],
        "governor": "schedutil",
        "cpu_mhz": [1510, 1510],
        "temperature_c": {"cpu-thermal": 48.25},
        "gpu_mhz": 624,
        "missing": ["power_mode", "throttled"],
    }


def test_what_a_machine_does_not_tell_is_named(tmp_path):
    state = conditions.state(tmp_path)
    names = ["cpu_mhz", "governor", "gpu_mhz", "load_average", "power_mode", "temperature_c", "throttled"]
    assert state == {"missing": names}


def test_a_pc_names_its_processor_and_counts_its_throttling(tmp_path):
    write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU @ 3 GHz\n")
    for cpu, count in enumerate((3, 4)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count", f"{count}\n")
    assert conditions.machine(tmp_path)["cpu"] == "Some CPU @ 3 GHz"
    assert conditions.state(tmp_path)["throttled"] == 7


def test_other_work_is_counted_while_the_models_are_timed():
    during = conditions.during([[0.1, 0.5], [0.1, 0.5]])
    assert during == {"other_work": 0.3}
    (said,) = conditions.remarks({}, {}, cores=2, during=during)
    assert said.startswith("the machine was busy: other programs used 0.30 of 2 processors while")
    assert conditions.remarks({}, {}, cores=4, during=during) == []
    assert conditions.during([[], []]) == {}


def test_other_work_is_all_work_but_ours(tmp_path):
    usages = []
    for everyone, ours in ((1000, 100), (1600, 300)):  # ticks of a hundredth of a second
        write(tmp_path, "proc/stat", f"cpu  {everyone - 50} 0 0 9999 5 0 0 50 0 0\n")
        write(tmp_path, "proc/7/stat", f"7 (a name (odd)) S 1 1 1 0 -1 0 0 0 0 0 {ours - 10} 10 0 0 20\n")
        usages.append(load.usage([7], tmp_path))
    before, after = (replace(one, clock=10.0 * i, ours=one.ours - time.process_time())
                     for i, one in enumerate(usages))  # fmt: skip
    assert after.others_since(before) == pytest.approx((6 - 2) / 10, abs=0.02)
    assert load.usage([8], tmp_path) is None


def test_work_on_processors_that_we_may_not_use_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {1, 2}, raising=False)
    lines = [
        "cpu  9000 0 0 0",
        *(f"cpu{n} {ticks} 0 0 9999 5 0 0 50 0 0" for n, ticks in enumerate((8000, 350, 450))),
    ]
    write(tmp_path, "proc/stat", "\n".join(lines))
    assert load.usage([], tmp_path).everyone == (400 + 500) / load.TICKS


def test_what_speaks_against_a_run_is_said():
    before = {"load_average": [1.5, 0, 0], "throttled": 2, "governor": "performance", "power_mode": "MAXN 0"}
    after = {"load_average": [2.0, 0, 0], "throttled": 5, "governor": "powersave", "power_mode": "15W 1"}
    busy, throttled, governor, mode = conditions.remarks(before, after, cores=2)
    assert "busy before: load average 1.50 on 2" in busy
    assert throttled == "the CPU throttled 3 times"
    assert governor == "governor changed from performance to powersave"
    assert mode == "power mode changed from MAXN 0 to 15W 1"
    assert conditions.remarks({"load_average": [0.4, 0, 0]}, {"load_average": [1.9, 0, 0]}, cores=2) == []


def test_a_training_that_has_just_ended_does_not_make_the_machine_busy():
    loaded = {"load_average": [2.0, 0, 0]}
    assert conditions.remarks(loaded, loaded, cores=2, during={"other_work": 0.01}) == []
    (busy,) = conditions.remarks({"load_average": [0.1, 0, 0]}, {}, cores=2, during={"other_work": 1.2})
    assert "other programs used 1.20 of 2 processors" in busy


def test_a_gpu_that_slowed_down_is_said():
    before, after = {"gpu": {"slowed_by": []}}, {"gpu": {"slowed_by": ["heat"]}}
    assert conditions.remarks(before, after, cores=2) == ["the GPU is slowed down: heat"]
