"""`--to adapter`: a folder in PEFT's format, for people who have the base; nothing of this machine."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

from tunesmith.disk import sync_file
from tunesmith.errors import ModelError
from tunesmith.export.arithmetic import in_fp32
from tunesmith.export.loaded import TransformersModel, local_source
from tunesmith.export.merged import meta
from tunesmith.export.reference import held_dtype
from tunesmith.export.work import Work, Written
from tunesmith.model import saved
from tunesmith.model.load import end_ids, load_model, load_tokenizer, quiet
from tunesmith.model.peft_parts import PeftModel

USAGE = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")   # with the template that was trained with
```

With tunesmith: `tunesmith chat FOLDER`{where}.
"""


def write(work: Work, folder: Path) -> Written:
    """The adapter's tensors as they are, byte for byte; its config, the tokenizer and the template."""
    source = work.subject.found.adapter
    assert source is not None
    shutil.copyfile(source / saved.WEIGHTS, folder / saved.WEIGHTS)
    sync_file(folder / saved.WEIGHTS)
    config = json.loads((source / saved.CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = work.base.hub or work.base.name
    config["revision"] = work.base.revision if work.base.kind == "hub" else None
    config["inference_mode"] = True
    (folder / saved.CONFIG).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    saved.tidy_adapter(folder)
    work.renderer.save(folder)
    own = {**meta(work), "quantization": work.subject.found.meta.get("quantization")}
    del own["trained_over"]
    if work.base.kind == "embedded":
        own["model"] = work.subject.found.base.name
    (folder / saved.META).write_text(json.dumps(own, ensure_ascii=False, indent=1), encoding="utf-8")
    notes = []
    if work.base.hub is None:
        notes.append(
            f"The base was a folder of the machine that trained it: {work.base.name!r}. This adapter fits no "
            f"other model. Its fingerprint begins with {str(work.base.fingerprint)[:16]}."
        )
    elif not work.base.exact:
        notes.append(
            f"Trained on tunesmith's embedded copy of {work.base.hub}, whose weights were quantised once and "
            f"are held in bf16 (fingerprint {str(work.base.fingerprint)[:16]}, `{work.base.name}` in "
            "tunesmith). On the original weights it answers a little differently; that wasn't measured."
        )
    if more := work.renderer.stop_ids - end_ids(work.subject.found.base):
        words = ", ".join(f"`{work.renderer.decode([token])}`" for token in sorted(more))
        notes.append(
            f"Answers end with {words} as well, which the base's generation config doesn't say: with "
            f"transformers, give `eos_token_id={sorted(work.renderer.stop_ids)}` to `generate`."
        )
    for line in notes:
        work.note(line)
    return Written({}, _usage(work), notes, ["lora"], "peft")


def _usage(work: Work) -> str:
    base = work.base
    where = "" if base.hub else f", from a folder that holds the base as `{base.name}/`"
    return USAGE.format(base=base.hub or f"FOLDER OF {base.name}", where=where)


def open_adapter(work: Work, folder: Path) -> TransformersModel:
    """What lies in the folder, by PEFT alone, over the base of the run."""
    found = work.subject.found
    model = load_model(found.base, work.device, dtype=held_dtype(work.subject, work.dtype))
    try:
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing. is deprecated")
            tuned = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
    except Exception as error:
        raise ModelError(
            f"peft can't read the exported adapter: {type(error).__name__}: {error}.",
            fix="Please report this.",
        ) from error
    return TransformersModel(
        in_fp32(tuned.eval()),
        load_tokenizer(local_source(folder)),
        ends=work.renderer.stop_ids,
    )


def needs(work: Work) -> int:
    """Bytes of the adapter, and room for the rest."""
    source = work.subject.found.adapter
    return ((source / saved.WEIGHTS).stat().st_size if source else 0) + 64 * 2**20
