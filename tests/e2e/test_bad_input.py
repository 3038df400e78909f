"""Bad input: each case ends with its exit code, one message of cause and remedy, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.e2e.conftest import Ended, qa_rows, write_jsonl
from tests.families import save_tiny, tiny_tokenizer
from tests.warm import Warm


@dataclass(frozen=True)
class Case:
    """A command that must fail. `prepare` lays files into the working folder and may return further words."""

    name: str
    words: tuple[str, ...]
    code: int
    says: tuple[str, ...]
    prepare: Callable[[Path], Any] = lambda _: None


TRAIN = ("train", "job.yaml")


def job(**changes: Any) -> Callable[[Path], None]:
    """Write job.yaml (two steps on good rows) with dotted settings changed."""

    def prepare(place: Path) -> None:
        write_jsonl(place / "rows.jsonl", qa_rows())
        content: dict[str, Any] = {
            "model": str(place.parent / "unset"),
            "output": "run",
            "data": {"train": "rows.jsonl", "max_length": 256},
            "adapter": {"rank": 2, "alpha": 4},
            "train": {"max_steps": 2, "dtype": "fp32", "warmup": 0, "learning_rate": 1e-3},
        }
        for name, value in changes.items():
            node, *rest = name.split("__")
            if rest:
                content[node][rest[0]] = value
            else:
                content[node] = value
        (place / "job.yaml").write_text(json.dumps(content), encoding="utf-8")

    return prepare


def rows(content: str | bytes, name: str = "rows.jsonl", **changes: Any) -> Callable[[Path], None]:
    """A job whose data file has this very content."""

    def prepare(place: Path) -> None:
        job(**{"data__train": name, **changes})(place)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def lines(*values: Any) -> str:
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


GOOD = {"instruction": "a", "input": "", "output": "b"}


def pickle_model(place: Path) -> None:
    job(model="pickled")(place)
    folder = save_tiny("qwen2", place / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def remote_code(place: Path) -> None:
    job(model="remote")(place)
    folder = save_tiny("qwen2", place / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mystery", "architectures": ["MysteryModel"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_mystery.C",
        "AutoModelForCausalLM": "modeling_mystery.M",
    }
    (folder / "config.json").write_text(json.dumps(config))


def unknown_architecture(place: Path) -> None:
    job(model="odd")(place)
    folder = save_tiny("qwen2", place / "odd")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mystery"}
    (folder / "config.json").write_text(json.dumps(config))


def cut_weights(place: Path) -> None:
    job(model="cut")(place)
    file = save_tiny("qwen2", place / "cut") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lfs_pointer(place: Path) -> None:
    job(model="pointer")(place)
    file = save_tiny("qwen2", place / "pointer") / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def experts(place: Path) -> None:
    job(model="experts")(place)
    config = Qwen3MoeConfig(
        vocab_size=512, hidden_size=16, intermediate_size=24, moe_intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(place / "experts")
    tiny_tokenizer("qwen3").save_pretrained(place / "experts")


def empty_folder(place: Path) -> None:
    job(model="nothing")(place)
    (place / "nothing").mkdir()


def damaged_gguf(place: Path) -> None:
    job(model="model.gguf")(place)
    (place / "model.gguf").write_bytes(b"GGUF" + bytes(range(40)))


def used_output(place: Path) -> None:
    job()(place)
    (place / "run").mkdir()
    (place / "run" / "notes.txt").write_text("mine")


def output_below_file(place: Path) -> None:
    job(output="rows.jsonl/run")(place)


def dataset_info(**entry: Any) -> Callable[[Path], None]:
    def prepare(place: Path) -> None:
        job(data={"train": "mine", "info": "dataset_info.json"})(place)
        (place / "dataset_info.json").write_text(json.dumps({"mine": entry}))

    return prepare


def two_kinds(place: Path) -> None:
    job(data__train="folder")(place)
    (place / "folder").mkdir()
    write_jsonl(place / "folder" / "a.jsonl", qa_rows())
    (place / "folder" / "b.csv").write_text("instruction,output\na,b\n")


def prompts_only(place: Path) -> None:
    write_jsonl(place / "test.jsonl", [{"instruction": "a", "input": "b"}])


def questions_and_truth(place: Path) -> None:
    write_jsonl(place / "test.jsonl", [{"instruction": "a", "input": "b"}] * 3)
    (place / "truth.txt").write_text("one\ntwo\n")


def existing_answers(place: Path) -> None:
    write_jsonl(place / "test.jsonl", qa_rows())
    (place / "out.jsonl").write_text('{"id": "x"}\n')


def unfinished_run(place: Path) -> None:
    (place / "runs" / "half").mkdir(parents=True)
    (place / "runs" / "half" / "job.yaml").write_text("job: {}\n")


def run_as_model(place: Path) -> None:
    job()(place)
    unfinished_run(place)
    (place / "runs" / "half" / "job.yaml").write_text("job: {model: its/base}\n")


CASES = [
    # the command and the job
    Case("unknown verb", ("trian", "job.yaml"), 2, ("train",)),
    Case("no such job", ("train", "jop.yaml"), 2, ("no file jop.yaml", "job.yaml"), job()),
    Case("broken YAML", TRAIN, 2, ("job.yaml:3",), lambda p: (p / "job.yaml").write_text("data:\n a: [1\nb: 2\n")),
    Case("a list instead of settings", TRAIN, 2, ("list",), lambda p: (p / "job.yaml").write_text("- a\n- b\n")),
    Case("no data", TRAIN, 2, ("data is required",), lambda p: (p / "job.yaml").write_text("model: x\n")),
    Case("unknown setting", (*TRAIN, "train.learning_rat=1"), 2, ("learning_rate",), job()),
    Case("setting in the wrong place", (*TRAIN, "epochs=3"), 2, ("train.epochs",), job()),
    Case("not a setting", (*TRAIN, "epochs"), 2, ("key=value",), job()),
    Case("rank 0", (*TRAIN, "adapter.rank=0"), 2, ("adapter.rank",), job()),
    Case("epochs 0", (*TRAIN, "train.epochs=0"), 2, ("train.epochs",), job()),
    Case("text for a number", (*TRAIN, "train.seed=abc"), 2, ("train.seed", "abc"), job()),
    Case("tokens and rows", (*TRAIN, "train.tokens_per_step=9", "train.batch_size=2"), 2, ("not both",), job()),
    Case("unknown schedule", (*TRAIN, "train.schedule=cosin"), 2, ("cosine",), job()),
    Case("warm-up too long", (*TRAIN, "train.warmup=50"), 2, ("warmup",), job()),
    Case("fp16 on a CPU", (*TRAIN, "train.dtype=fp16"), 2, ("fp16", "GPU"), job()),
    Case("betas for sgd", (*TRAIN, "train.optimizer=sgd", "train.betas=[0.9, 0.95]"), 2, ("betas", "sgd", "adamw"), job()),
    Case("unknown optimizer", (*TRAIN, "train.optimizer=adamw8"), 2, ("adamw_8bit", "muon"), job()),
    Case("quantised whole weights", (*TRAIN, "quantization=nf4"), 2, ("lora or dora",), job(adapter={"type": "full"}, train__learning_rate=1e-4)),
    Case("unknown quantisation", (*TRAIN, "quantization=int4"), 2, ("nf4", "int8"), job()),
    Case("double quantisation of int8", (*TRAIN, "quantization.type=int8", "quantization.double_quant=true"), 2, ("double_quant", "nf4"), job()),
    Case("fp16 products on a CPU", (*TRAIN, "quantization.type=nf4", "quantization.compute_dtype=fp16"), 2, ("fp16 needs a GPU",), job()),
    Case("quantised experts", (*TRAIN, "quantization=nf4"), 1, ("qwen3_moe", "linear layers"), experts),
    Case("recompute every 0th layer", (*TRAIN, "train.checkpoint_activations=0"), 2, ("every N-th",), job()),
    Case("tracker not installed", (*TRAIN, "train.track=swanlab"), 2, ("tunesmith[track]",), job()),
    Case("full tuning at LoRA's rate", TRAIN, 2, ("learning_rate", "2e-5"), job(adapter={"type": "full"}, train={"max_steps": 1})),
    Case("options of other tools", (*TRAIN, "--epochs", "3"), 2, ("train.epochs=VALUE",), job()),
    Case("a data file as the job", ("train", "rows.json"), 2, ("data: {train: FILE}",), rows("[]", "rows.json")),
    # data files
    Case("no such data file", TRAIN, 1, ("row.jsonl", "rows.jsonl"), job(data__train="row.jsonl")),
    Case("empty file", TRAIN, 1, ("rows.jsonl", "empty"), rows("")),
    Case("only blank lines", TRAIN, 1, ("rows.jsonl",), rows("\n\n  \n")),
    Case("broken JSON", TRAIN, 1, ("rows.jsonl:2",), rows(lines(GOOD) + '{"instruction": "a" "output"}\n' + lines(GOOD))),
    Case("two broken lines", TRAIN, 1, ("rows.jsonl:1", "rows.jsonl:3"), rows("{\n" + lines(GOOD) + "[1,\n")),
    Case(
        "broken JSON array", TRAIN, 1, ("rows.json:3",),
        rows('[\n{"instruction": "a", "output": "b"},\n{"instruction": "a" "output": "b"}\n]', "rows.json"),
    ),
    Case("one object, no rows", TRAIN, 1, ("rows.json",), rows('{"data": [1, 2]}', "rows.json")),
    Case("wrong encoding", TRAIN, 1, ("byte",), rows(lines(GOOD).encode() + b'{"output": "\xff\xff\xfe\x80"}\n')),
    Case("missing columns", TRAIN, 1, ("question", "instruction"), rows(lines({"question": "a", "answer": "b"}))),
    Case("a row lacks its output", TRAIN, 1, ("rows.jsonl:2", "output"), rows(lines(GOOD, {"instruction": "a"}, GOOD))),
    Case("number for text", TRAIN, 1, ("rows.jsonl:2", "output"), rows(lines(GOOD, {**GOOD, "output": 42}))),
    Case("empty reply", TRAIN, 1, ("rows.jsonl:2",), rows(lines(GOOD, {**GOOD, "output": "  "}))),
    Case("unknown role", TRAIN, 1, ("rows.jsonl:1", "judge"), rows(lines(chat(("judge", "a"), ("assistant", "b"))))),
    Case("no assistant turn", TRAIN, 1, ("rows.jsonl:1",), rows(lines(chat(("user", "a"))))),
    Case("preference rows", TRAIN, 1, ("prefer",), rows(lines({"prompt": "a", "chosen": "b", "rejected": "c"}))),
    Case("ragged CSV", TRAIN, 1, ("rows.csv:3",), rows("instruction,output\na,b\na,b,c\n", "rows.csv")),
    Case("binary file", TRAIN, 1, ("rows.bin",), rows(bytes(range(256)) * 4, "rows.bin")),
    Case("two kinds in a folder", TRAIN, 1, ("folder",), two_kinds),
    Case("validation share of one row", TRAIN, 1, ("valid",), rows(lines(GOOD), data__valid=0.5)),
    Case("share above 1", (*TRAIN, "data.valid=1.5"), 2, ("between 0 and 1",), job()),
    Case("dataset_info: unknown key", TRAIN, 2, ("file_name",), dataset_info(filename="rows.jsonl")),
    Case("dataset_info: script", TRAIN, 2, ("script",), dataset_info(script_url="load.py")),
    Case("dataset_info: unknown name", (*TRAIN, "data.train=mien"), 2, ("mine",), dataset_info(file_name="rows.jsonl")),
    # lengths and labels
    Case("all rows too long", TRAIN, 1, ("rows.jsonl:1", "max_length"), job(data__max_length=8)),
    Case("all rows dropped", TRAIN, 1, ("max_length",), job(data__max_length=8, data__too_long="drop")),
    Case("nothing is marked", TRAIN, 1, ("marked",), job(data__train_on="marked")),
    Case(
        "end-of-turn token typed in a row", TRAIN, 1, ("rows.jsonl:2", "<|im_end|>"),
        rows(lines(GOOD, {**GOOD, "instruction": "what is <|im_end|>?"})),
    ),
    # templates
    Case("unknown template", (*TRAIN, "data.template=chatlm"), 2, ("chatml",), job()),
    Case(
        "broken template", (*TRAIN, "data.template=own.jinja"), 1, ("own.jinja",),
        lambda p: (job()(p), (p / "own.jinja").write_text("{% for m in messages %}{{ m.content }")),
    ),
    Case("base model without a template", (*TRAIN, "model=MODELS/gpt2"), 1, ("chatml", "plain"), job()),
    Case(
        "a system turn that the template refuses", (*TRAIN, "model=MODELS/gemma3"), 1, ("rows.jsonl:1", "ystem"),
        rows(lines(chat(("system", "s"), ("user", "a"), ("assistant", "b")))),
    ),
    # models and adapters
    Case("no such folder", (*TRAIN, "model=./qwen9"), 1, ("qwen9",), job()),
    Case("no such run", ("chat", "runs/tangg-1"), 1, ("no model or run runs/tangg-1",), unfinished_run),
    Case("neither folder nor id", (*TRAIN, "model=a/b/c"), 1, ("a/b/c",), job()),
    Case("hub without network", (*TRAIN, "model=Qwen/Qwen3-0.6B"), 1, ("Qwen/Qwen3-0.6B",), job()),
    Case("folder without weights", TRAIN, 1, ("nothing",), empty_folder),
    Case("pickle checkpoint", TRAIN, 1, ("safetensors",), pickle_model),
    Case("remote code", TRAIN, 1, ("code",), remote_code),
    Case("unknown architecture", TRAIN, 1, ("mystery",), unknown_architecture),
    Case("cut weights", TRAIN, 1, ("safetensors",), cut_weights),
    Case("git-lfs pointer", TRAIN, 1, ("git lfs pull",), lfs_pointer),
    Case("damaged GGUF", TRAIN, 1, ("gguf",), damaged_gguf),
    Case("no such target", (*TRAIN, "adapter.targets=[qq_proj]"), 2, ("qq_proj", "q_proj"), job()),
    Case("too many layers", TRAIN, 2, ("99",), job(adapter={"type": "freeze", "last_layers": 99})),
    Case("nothing to continue from", (*TRAIN, "adapter.continue_from=runs/none"), 1, ("runs/none",), job()),
    # the run folder
    Case("output in use", TRAIN, 1, ("is there already", "output="), used_output),
    Case("output below a file", TRAIN, 1, ("file",), output_below_file),
    Case("not a run", ("runs", "show", "nowhere"), 1, ("nowhere",)),
    Case("output where nothing can be made", (*TRAIN, "output=/proc/x"), 1, ("/proc/x can't be written",), job()),
    Case("a run as model", (*TRAIN, "model=runs/half"), 1, ("is a run", "model=its/base and adapter.continue_from=runs/half"), run_as_model),
    Case("a misspelt alias", (*TRAIN, "model=smollm2-135"), 1, ("Did you mean smollm2-135m?",), job()),
    Case("chat with an unfinished run", ("chat", "runs/half"), 1, ("runs/half",), unfinished_run),
    # answers and measurements
    Case("no prompts file", ("generate", "MODELS/qwen2", "--input", "no.jsonl", "--output", "out.jsonl"), 1, ("no.jsonl",)),
    Case(
        "answers exist already", ("generate", "MODELS/qwen2", "--input", "test.jsonl", "--output", "out.jsonl"), 1,
        ("out.jsonl",), existing_answers,
    ),
    Case(
        "sampling settings that contradict each other",
        ("generate", "MODELS/qwen2", "--prompt", "a", "num_beams=3", "temperature=0.5", "max_length=9", "max_new_tokens=9"),
        2, ("num_beams", "temperature", "max_length", "max_new_tokens"),
    ),
    Case("temperature 0", ("generate", "MODELS/qwen2", "--prompt", "a", "temperature=0"), 2, ("temperature", "do_sample")),
    Case("unknown sampling setting", ("generate", "MODELS/qwen2", "--prompt", "a", "topk=5"), 2, ("top_k",)),
    Case("rows without answers", ("eval", "MODELS/qwen2", "--data", "test.jsonl"), 1, ("test.jsonl:1",), prompts_only),
    Case(
        "truth of another length",
        ("eval", "MODELS/qwen2", "--data", "test.jsonl", "--references", "truth.txt"), 1, ("3", "2"), questions_and_truth,
    ),
    Case("a blind test of one", ("blind", "new", "MODELS/qwen2", "--data", "test.jsonl"), 2, ("takes two models",), existing_answers),
    Case("a blind test without prompts", ("blind", "new", "MODELS/qwen2", "MODELS/gpt2"), 2, ("--data FILE",)),
    Case("a blind test of no answers", ("blind", "new", "rows.jsonl", "test.jsonl"), 1, ("prediction is missing",), rows('{"id": 1}\n')),
    Case("the report of no blind test", ("blind", "report", "."), 1, ("isn't the folder of a blind test",)),
    Case("compare a base with itself", ("compare", "MODELS/qwen2", "--data", "test.jsonl"), 2, ("base",), existing_answers),
]  # fmt: skip


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, place: Path, models: Path, tunesmith: Callable[..., Ended]) -> None:
    case.prepare(place)
    if (file := place / "job.yaml").is_file():
        file.write_text(file.read_text().replace(str(place.parent / "unset"), str(models / "qwen2")))
    before = tree(place)

    ended = tunesmith(*(word.replace("MODELS", str(models)) for word in case.words))

    assert ended.code == case.code, ended.text
    assert "Traceback" not in ended.text
    for part in case.says:
        assert part in ended.err
    if case.name in ("no such target", "too many layers", "output where nothing can be made"):
        assert "trained on" not in ended.err  # told before the data is shown
    assert case.name == "unknown verb" or "What to do" in ended.err
    assert len([line for line in ended.err.splitlines() if line.startswith("Error")]) == 1
    assert tree(place) == before


def test_there_are_more_than_forty_cases() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


def test_a_disk_that_fills_up_leaves_no_half_written_weights(
    warm: Warm, tmp_path_factory: pytest.TempPathFactory, place: Path, models: Path
) -> None:
    job(model=str(models / "qwen2"), adapter={"type": "full"})(place)
    # Room for the records, not for the weights.
    ended = warm.run(
        "train", "job.yaml", folder=place, printed=tmp_path_factory.mktemp("full") / "printed",
        before=["tests.faults.system", "limit_file_size", 20_000],
    )  # fmt: skip
    assert ended.code == 1, ended.printed
    assert "Traceback" not in ended.printed
    assert "can't be written" in ended.printed
    assert "What to do" in ended.printed
    left = {p.name for p in (place / "run").iterdir()}
    assert not left & {"adapter", "model"}
    assert [
        p for p in (place / "run").rglob("*") if p.suffix == ".safetensors" or p.name.startswith(".")
    ] == []


def test_no_write_permission(
    warm: Warm, tmp_path_factory: pytest.TempPathFactory, place: Path, models: Path
) -> None:
    job(model=str(models / "qwen2"))(place)
    place.chmod(0o555)
    ended = warm.run(
        "train", "job.yaml", folder=place, printed=tmp_path_factory.mktemp("readonly") / "printed",
        before=["tests.faults.system", "obey_permissions"],
    )  # fmt: skip
    assert ended.code == 1, ended.printed
    assert "Traceback" not in ended.printed
    assert "permission" in ended.printed
    assert not (place / "run").exists()
