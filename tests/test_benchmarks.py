"""The benchmarks for accelerators, at toy size on a CPU; the profile of a GPU is a made one."""

import importlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import accelerator, fvd, kernels, sampling, shots, tables, training
from benchmarks.measure import TOY, Skipped

ROOT = Path(__file__).parents[1]


# But mutate, which needs cosmic-ray: that is installed for it alone.
@pytest.mark.parametrize("name", sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"mutate"}))
def test_every_benchmark_is_imported(name):
    importlib.import_module(f"benchmarks.{name}")


# One row after another


def shell(text, limit_s=20.0):
    return accelerator.run(["bash", "-c", text], limit_s)


def test_a_row_reports_lines_of_json_and_the_last_value_counts():
    record = shell("""echo '{"a": 1, "b": 2}'; echo hello; echo '[3]'; echo '{"a": 4}'""")
    assert (record["status"], record["note"], record["figures"]) == ("done", "", {"a": 4, "b": 2})


def test_a_row_that_fails_says_why_and_keeps_its_figures():
    record = shell("""echo '{"a": 1}'; echo 'first' >&2; echo 'no memory left' >&2; exit 3""")
    assert (record["status"], record["note"]) == ("failed", "status 3: no memory left")
    assert record["figures"] == {"a": 1}


def test_a_row_out_of_time_ends_with_all_its_processes_and_keeps_its_figures(tmp_path):
    alive, began = tmp_path / "alive", time.monotonic()
    record = shell(f"""while true; do echo >> {alive}; sleep 0.02; done & echo '{{"a": 1}}'; sleep 60""", limit_s=1.0)
    assert (record["status"], record["note"], record["figures"]) == ("out of time", "ended after 1 s", {"a": 1})
    assert time.monotonic() - began < 30
    size = alive.stat().st_size
    time.sleep(0.3)
    assert alive.stat().st_size == size > 1


def test_a_row_that_lacks_a_library_is_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.torch_training", raising=False)
    monkeypatch.delattr(sys.modules["benchmarks"], "torch_training", raising=False)
    monkeypatch.delitem(sys.modules, "tests.nets.torch_i3d", raising=False)
    for row in (training.in_pytorch, fvd.in_pytorch):
        with pytest.raises(Skipped, match="torch is not installed"):
            row(TOY, lambda **figures: None)
    record = shell("""echo '{"device": "cpu", "skipped": "torch is not installed"}'""")
    assert (record["status"], record["note"]) == ("skipped", "torch is not installed")


def test_rows_that_no_longer_fit_are_skipped_and_what_was_measured_stays(tmp_path, capsys):
    path = tmp_path / "runs" / "figures.json"
    names = list(accelerator.ROWS)
    accelerator.drive(names, TOY, 0.01, path)
    records = json.loads(path.read_text())["rows"]
    assert list(records) == names
    assert {record["status"] for record in records.values()} == {"skipped"}
    assert "product: skipped, 0 s (1 s are left, and it may take 60 s)" in capsys.readouterr().out

    held = json.loads(path.read_text())
    held["rows"]["product"] = {"status": "done", "note": "", "seconds": 1.0, "figures": {"products": {"float32": 2.0}}}
    path.write_text(json.dumps(held))
    accelerator.drive(["product"], TOY, 0, path)
    assert json.loads(path.read_text()) == held
    with pytest.raises(SystemExit, match="other sizes"):
        accelerator.drive(["product"], TOY._replace(frames=5), 0, path)


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.chdir(ROOT)


def check_rows(records):
    """What is true of the figures of all rows that were measured."""
    assert {name: record["note"] for name, record in records.items() if record["status"] != "done"} == {}
    figures = {name: record["figures"] for name, record in records.items()}
    trained = {name: row for name, row in figures.items() if name.startswith("training") and "torch" not in name}
    for row in trained.values():
        assert set(row["phases"]) == set(tables.PHASES)
        assert row["step_s"] > 0
        assert 0.5 < row["compiler_gflop"] / row["useful_gflop"] < 1.5  # of a network so small much is not a product
        assert set(row["kernel_ms"]) <= set(kernels.KINDS)
        assert {"convolution", "norm", "update"} <= set(row["kernel_ms"])
    cold, warm = (figures[name]["phases"]["compiling"] for name in ("training-1", "training-1-warm"))
    assert warm < cold / 2
    if "training-torch" in figures:  # the same networks, and blocks beyond one are none at toy size
        assert figures["training-torch"]["parameters"] == figures["training-1"]["parameters"]
    for name, row in figures.items():
        if name.startswith("sampling"):
            assert set(row["models"]) == set(sampling.MODELS)
            assert all(model["sampling_s"] > 0 for model in row["models"].values())


@pytest.mark.slow
def test_rows_at_toy_size_from_processes_to_tables(one_device, monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    monkeypatch.setitem(accelerator.ROWS, "training", accelerator.ROWS["training"]._replace(limit_s=1.0))
    names = ["product", "training-1", "training", "training-1-warm", "sampling", "fvd-distance"]
    accelerator.drive(names, TOY, 10, path)
    results = json.loads(path.read_text())
    slow = results["rows"].pop("training")
    assert (slow["status"], slow["note"]) == ("out of time", "ended after 1 s")
    check_rows(results["rows"])
    text = tables.markdown(results)
    for start in ("| training-1-warm |", "| 4 | decomposed, base first |", "| 8 against as many clips: KVD |"):
        assert f"\n{start}" in text

    broken = TOY._replace(width=65)
    accelerator.drive(["training-1"], broken, 10, tmp_path / "broken.json")
    [record] = json.loads((tmp_path / "broken.json").read_text())["rows"].values()
    assert record["status"] == "failed"
    assert "65" in record["note"]
    assert set(record["figures"]["phases"]) == {"start"}


@pytest.mark.slow  # about three minutes
def test_all_rows_at_toy_size(one_device, tmp_path):
    path = tmp_path / "figures.json"
    accelerator.drive(list(accelerator.ROWS), TOY, 20, path)
    results = json.loads(path.read_text())
    assert list(results["rows"]) == list(accelerator.ROWS)
    check_rows(results["rows"])
    assert "| PyTorch: float32 224 x 224 from the host |" in tables.markdown(results)


# Counts of sampling


def test_flops_of_a_step_do_not_depend_on_the_number_of_steps_and_double_with_guidance():
    def counted(name, steps, guided=False):
        config = sampling.config(TOY._replace(batch=8, steps=steps), name, 4, guided=guided, precision="float32")
        return sampling.counted(config, *sampling.traced(config)[:2])

    for name in sampling.MODELS:
        two, three = counted(name, 2), counted(name, 3)
        assert two["gflop"] == pytest.approx(three["gflop"])
        assert two["compiler_gflop"] == pytest.approx(three["compiler_gflop"], rel=1e-3)
        assert two["gflop"] == pytest.approx(two["compiler_gflop"], rel=0.2)
    assert counted(name, 2, guided=True)["gflop"] == pytest.approx(2 * two["gflop"], rel=0.01)


# Kernels by kind

UP, DOWN = "jit(train_step)/jvp(UNet)/up_0_0", "jit(train_step)/transpose(jvp(UNet))/down_1_0"


@pytest.mark.parametrize(
    ("kernel", "path", "expected"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "", "convolution"),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_tf32f32", f"{DOWN}/res/conv_in/conv_general_dilated", "convolution"),
        ("custom-call.7 __cudnn$convForward", f"{UP}/res/conv_in/conv_general_dilated", "convolution"),
        ("ynn_fusion.12", f"{UP}/res/conv_in/conv_general_dilated", "convolution"),
        ("loop_pad_fusion", f"{UP}/res/conv_in/conv_general_dilated", "elementwise"),
        ("ynn_fusion.13", f"{UP}/res/emb/dot_general", "product"),
        ("copy.5", f"{UP}/attention/qkv/dot_general", "copy"),
        ("void cudnn::nchwToNhwcKernel<float>", "", "copy"),
        ("wrapped_transpose_4", f"{UP}/res/conv_in/conv_general_dilated", "copy"),
        ("MemcpyD2D", "", "copy"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTN", f"{UP}/res/emb/dot_general", "product"),
        ("gemm_fusion_dot_12_0", "", "product"),
        ("gemm_fusion_dot_13_0", f"{UP}/attention/qkv/dot_general", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "", "attention"),
        ("input_reduce_fusion_3", f"{UP}/attention/norm/jit(_forward)/reduce_sum", "norm"),
        ("loop_multiply_fusion", f"{DOWN}/res/norm_in/jit(_backward)/mul", "norm"),
        ("loop_convert_fusion_2", f"{UP}/res/conv_in/convert_element_type", "elementwise"),
        ("input_reduce_fusion_9", f"{DOWN}/res/conv_in/reduce_sum", "reduction"),
        ("loop_fusion", "jit(train_step)/jvp(vmap(jit(_normal)))/jit(_normal_real)/erf_inv", "random numbers"),
        ("loop_multiply_fusion_1", "jit(train_step)/mul", "update"),
        ("reduce.3", "reduce_sum", "reduction"),  # a path that the compiler has cut
        ("slice_fusion_1", "jit(train_step)/slice", "update"),
    ],
)
def test_kind_of_a_kernel(kernel, path, expected):
    assert kernels.kind(kernel, path) == expected


def profile(plane, lines):
    """A profile whose lines have events (name, microseconds, hlo_op or "")."""
    names = sorted({name for events in lines.values() for name, _, _ in events})
    text = f'planes {{ name: "{plane}" stat_metadata {{ key: 1 value {{ id: 1 name: "hlo_op" }} }}'
    for k, name in enumerate(names):
        text += f' event_metadata {{ key: {k} value {{ id: {k} name: "{name}" }} }}'
    for line, events in lines.items():
        text += f' lines {{ name: "{line}"'
        for name, duration, op in events:
            stat = f'stats {{ metadata_id: 1 str_value: "{op}" }}' if op else ""
            text += f" events {{ metadata_id: {names.index(name)} duration_ps: {duration * 1000000} {stat} }}"
        text += " }"
    serialized = jax.profiler.ProfileData.text_proto_to_serialized_xspace(text + " }")
    return jax.profiler.ProfileData.from_serialized_xspace(serialized)


PROGRAM = """
  %loop_add_fusion.1 = f32[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(train_step)/add" stack_frame_id=1}
  ROOT %cudnn-conv.2 = f32[] custom-call(), custom_call_target="__cudnn$convForward", metadata={op_name="jvp(UNet)"}
"""


def test_time_of_kernels_of_a_gpu_by_kind():
    made = profile(
        "/device:GPU:0",
        {
            "Stream #7(Compute)": [
                ("sm90_some_library_kernel", 3000, "cudnn-conv.2"),  # known by its instruction
                ("loop_add_fusion_1", 2000, ""),  # in a graph of kernels: known by its name alone
                ("loop_add_fusion_1", 500, "loop_add_fusion.1"),
            ],
            "Stream #9(MemcpyD2D)": [("MemcpyD2D", 250, "")],
            "Launch Stats": [("sm90_some_library_kernel", 9000, "")],
        },
    )
    events = kernels.events_of(made)
    assert len(events) == 4
    assert kernels.by_kind(events, kernels.instructions(PROGRAM)) == {"convolution": 3.0, "update": 2.5, "copy": 0.25}


def test_of_a_tpu_the_instructions_count_and_of_a_cpu_what_runs_them():
    op = [("cudnn-conv.2", 1000, "cudnn-conv.2"), ("while.3", 5000, "while.3")]
    tpu = profile("/device:TPU:0", {"XLA Modules": [("jit_train_step", 9000, "")], "XLA Ops": op})
    cpu = profile("/host:CPU", {"thread": [*op, ("ThunkExecutor::Execute", 7000, "")]})
    for made in (tpu, cpu):
        assert kernels.events_of(made) == [("cudnn-conv.2", "cudnn-conv.2", 1e6)]


# Tables


def done(**figures):
    where = {"device": "1 x card", "cores": 16, "jax": "0.11", "precision": "bfloat16"}
    return {"status": "done", "note": "", "seconds": 1.0, "figures": where | figures}


def test_tables_compare_with_the_product_with_pytorch_and_with_one_network():
    model = {"parameters": 1e6, "compiler_gflop": None, "compile_s": 1.0, "program_gib": None}
    step = {"clips": 8, "parameters": 2e6}
    rows = {
        "product": done(products={"bfloat16": 100.0, "strict float32": 50.0}),
        "training": done(step_s=1.0, useful_gflop=45_000.0, phases={"start": 1.0, "compiling": 2.5}, **step),
        "training-torch": done(step_s=1.2, torch="2.13", **step),
        "fvd": done(rates={"host to feature": 500.0, "resize alone": 9000.0}, clip_gflop=50.0),
        "sampling": done(
            frames=16, guided=False, steps=10,
            models={
                sampling.ONE_NETWORK: model | {"gflop": 100.0, "sampling_s": 1.0},
                "decomposed": model | {"gflop": 40.0, "sampling_s": 0.45},
            },
        ),
        "fvd-torch": {"status": "skipped", "note": "torch is not installed", "seconds": 1.0, "figures": {}},
    }  # fmt: skip
    lines = tables.markdown({"sizes": TOY._asdict(), "rows": rows}).splitlines()

    def cells(start):
        return next(line for line in lines if line.startswith(f"| {start} |")).strip("| ").split(" | ")

    assert "| training | 1.0 |  |  |  | 2.5 |  | 3.5 |" in lines
    steps = [line.split(" | ") for line in lines if line.startswith(("| training | 2.0", "| training-torch | 2.0"))]
    assert [row[4:9] for row in steps] == [
        ["1,000.0", "8.00", "45", "45.0%", "1.00"], ["1,200.0", "6.67", "37.5", "37.5%", "1.20"]
    ]  # fmt: skip
    assert cells("16 | decomposed")[3:] == ["40.0", "", "60.0%", "1.0", "0.450", "45.00", "55.0%"]
    assert cells("ours: host to feature")[1:] == ["500.00", "25", "50.0%"]
    assert cells("ours: resize alone")[1:] == ["9,000.00"]
    assert lines[-1] == "- fvd-torch: skipped, torch is not installed"


# Cuts


@pytest.mark.parametrize("dissolve", [0, 12])
def test_pictures_change_at_the_joins_and_nowhere_else(dissolve):
    videos = [np.full((100, 4, 4, 3), 50 * k, np.uint8) for k in range(5)]
    frames, truth = shots.joined(videos, cuts=6, seed=0, dissolve=dissolve)
    values = np.array([frame[0, 0, 0] for frame in frames]).astype(int)
    changes = (np.flatnonzero(np.diff(values)) + 1).tolist()
    assert len(truth) == 6
    # The frame after a dissolve differs from its last one.
    assert changes == [frame for frames in truth for frame in [*frames, *([frames.stop] if dissolve else [])]]


def test_precision_and_recall_count_a_dissolve_once():
    truth = [range(5, 6), range(20, 32)]
    assert shots.precision_and_recall({5, 21, 25}, truth) == (1.0, 1.0)
    assert shots.precision_and_recall({6, 21}, truth) == (0.5, 0.5)
    assert shots.precision_and_recall(set(), truth) == (0.0, 0.0)
