"""The table of what works today, for both READMEs: each line names the test files that show it.

`make docs` writes it between the markers of README.md and README.zh-CN.md; a test fails when it is older than this
list, or when a line names tests that aren't there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
START, END = "<!-- features: written by make docs -->", "<!-- end of features -->"

NUMBERS = {
    7: ("seven", "七"),
    8: ("eight", "八"),
    9: ("nine", "九"),
    10: ("ten", "十"),
    11: ("eleven", "十一"),
}


def _families() -> tuple[str, str]:
    """How many model families the tests of equality run through, in words: the one place where it is counted."""
    tree = ast.parse((ROOT / "tests" / "families.py").read_text(encoding="utf-8"))
    (value,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAMILIES"
    ]
    return NUMBERS[len(ast.literal_eval(value))]


COUNT, COUNT_ZH = _families()
# The sentence about them above the table.
SENTENCES = {
    "en": (r"tested for \w+ model families", f"tested for {COUNT} model families"),
    "zh": (r"已在[一-龥]+个模型系列上测试", f"已在{COUNT_ZH}个模型系列上测试"),
}

# English, Chinese, test files below tests/.
FEATURES: list[tuple[str, str, tuple[str, ...]]] = [
    (
        "Row formats recognised, with the reason: Alpaca, ShareGPT, messages, prompt-completion, preference, labelled, "
        "text; json, jsonl, csv, tsv, parquet, arrow, txt, folders; UTF-8, UTF-16, GB18030",
        "自动识别数据格式并说明理由：Alpaca、ShareGPT、messages、prompt-completion、偏好、标签、纯文本；"
        "json、jsonl、csv、tsv、parquet、arrow、txt、文件夹；UTF-8、UTF-16、GB18030",
        ("data/test_read.py", "data/test_formats.py", "data/test_chat_rows.py", "data/test_check.py"),
    ),
    (
        "LLaMA-Factory's `dataset_info.json`, as its users expect; its entries by their path, for every verb",
        "按 LLaMA-Factory 的原义读取 `dataset_info.json`；所有命令都可用条目的路径指定数据",
        ("data/test_dataset_info.py", "data/test_named_rows.py"),
    ),
    (
        "`make`: rows from documents (.txt, .md, .html, .docx, .pdf, .epub) or a novel's continuations; split by section before "
        "anything is made, written by one model, judged by another against the passage, every rejection counted by its reason; "
        "killed, it goes on without asking twice; cost estimated and limited",
        "`make`：由文档（.txt、.md、.html、.docx、.pdf、.epub）生成问答等样本，或由小说生成续写样本；先按章节划分训练、验证、测试集，"
        "一个模型编写、另一个对照原文评判，每条淘汰都按原因计数；被杀后接着做，不重复调用；可估算并限制费用",
        (
            "synth/test_documents.py",
            "synth/test_chunk.py",
            "synth/test_sorting.py",
            "synth/test_make.py",
            "synth/test_going_on.py",
            "synth/test_local.py",
            "cli/test_make.py",
        ),
    ),
    (
        "The model's own chat template, one renderer for training and chat; label mask checked against it",
        "使用模型自带的对话模板，训练与对话共用同一渲染器；标签掩码与模板逐一核对",
        ("data/test_template.py", "data/test_mask.py"),
    ),
    (
        "Rows too long: error, drop, truncate left or right, split; every count in the data report",
        "超长样本：报错、丢弃、左截断、右截断、切分；所有数量记入数据报告",
        ("data/test_encode.py",),
    ),
    (
        "Packing without padding; packed = padded = single rows in loss and gradients, "
        f"for {COUNT} model families",
        f"无填充打包；打包、填充、单条三种方式的损失与梯度一致，覆盖{COUNT_ZH}个模型系列",
        ("data/test_pack.py", "data/test_batch.py", "model/test_packing.py", "train/test_equality.py"),
    ),
    (
        f"Common beginnings of rows computed once, attention by segments; gradients equal, for {COUNT} model families",
        f"样本共同的开头只计算一次，注意力按段计算；梯度一致，覆盖{COUNT_ZH}个模型系列",
        (
            "data/test_prefixes.py",
            "model/test_attention.py",
            "model/test_attention_native.py",
            "train/test_sharing.py",
        ),
    ),
    (
        "LoRA layers, feed-forward blocks and the loss in C++ on processors with bf16 products (AVX-512 or tiles, AMX); "
        "updates too small for bf16 aren't lost",
        "LoRA 层、前馈块与损失用 C++ 计算（处理器需支持 bf16 乘法：AVX-512 或矩阵分块 AMX）；小于 bf16 精度的更新不会丢失",
        (
            "model/test_fused_lora.py",
            "model/test_linear_native.py",
            "model/test_gated_native.py",
            "model/test_native.py",
        ),
    ),
    (
        "Families that can't be packed (Mamba, gated linear attention, LFM2) are batched by length; each fast path that is "
        "off is named with its reason",
        "无法打包的模型系列（Mamba、门控线性注意力、LFM2）按长度分批；任何未启用的加速都会说明原因",
        ("train/test_bucketing.py", "train/test_fast_paths.py"),
    ),
    (
        "Models: embedded SmolLM2-135M, hub, ModelScope, folder, GGUF; safetensors only, no remote code",
        "模型来源：内置 SmolLM2-135M、Hugging Face、魔搭、本地文件夹、GGUF；只读 safetensors，不执行远程代码",
        ("model/test_source.py", "model/test_gguf.py", "model/test_hub.py"),
    ),
    (
        "LoRA, rsLoRA, DoRA, PiSSA, full, last layers; go on from an adapter; loads with plain peft and transformers",
        "LoRA、rsLoRA、DoRA、PiSSA、全参数、只训最后几层；可从已有适配器继续；结果可直接用 peft 和 transformers 加载",
        ("model/test_prepare.py", "model/test_saved.py", "model/test_continue.py", "train/test_run.py"),
    ),
    (
        "Training: token-weighted loss, schedules, early stopping, best and last, bit-identical repeats, NEFTune, trackers",
        "训练：按词元加权的损失、学习率调度、早停、保留最佳与最后、逐位可复现、NEFTune、实验跟踪",
        (
            "train/test_losses.py",
            "train/test_optim.py",
            "train/test_loop.py",
            "train/test_checkpoint.py",
            "train/test_track.py",
        ),
    ),
    (
        "Stopped, killed or without power, a training goes on at its exact next step and ends byte for byte as if nothing had "
        "been; checkpoints whole or not there, damage found; what changed is refused with a diff; tried on your machine by "
        "`verify --resume`",
        "训练中断、被杀或断电后从准确的下一步继续，结果与从未中断逐字节相同；检查点要么完整要么不存在，损坏必被发现；"
        "有变动则列出差异并拒绝；`verify --resume` 可在本机实测",
        (
            "train/test_resume_loop.py",
            "train/test_resume_run.py",
            "train/test_resume_changes.py",
            "train/test_signals.py",
            "train/test_resume_check.py",
        ),
    ),
    (
        "Output head on label tokens alone, in chunks, full logits never held; plain LoRA as one function: gradients equal "
        "those of transformers and PEFT",
        "输出层只作用于标签词元并分块计算，从不生成完整 logits；普通 LoRA 合为一个函数：梯度与 transformers、PEFT 一致",
        (
            "train/test_head.py",
            "model/test_head_native.py",
            "model/test_gated_native.py",
            "model/test_fused_lora.py",
            "train/test_compiling.py",
        ),
    ),
    (
        "`plan`: memory by part, disk and time before a training, for this machine or a card by name; where it doesn't fit, "
        "a job that does",
        "`plan`：训练前给出各部分内存、磁盘与时间，针对本机或指定显卡；放不下时给出可行的配置",
        ("train/test_plan.py", "cli/test_plan.py"),
    ),
    (
        "`verify`: a job's gradients by each fast path against the naive computation, on its own rows and model",
        "`verify`：在自己的数据和模型上，逐一比较各加速路径与朴素计算的梯度",
        ("train/test_verify.py", "cli/test_verify.py"),
    ),
    (
        "Bases in 4 bits (NF4) and 8 bits, with LoRA and DoRA: gradients equal those through the unpacked weights; the error "
        "measured and said",
        "4 比特（NF4）与 8 比特底座，配合 LoRA、DoRA：梯度与解包后的权重一致；量化误差会测量并说明",
        ("model/test_quantize.py", "train/test_quantised_runs.py"),
    ),
    (
        "Optimizers AdamW, 8-bit AdamW, SGD, Muon, Adafactor; layers recomputed and passes shortened where memory is short",
        "优化器 AdamW、8 比特 AdamW、SGD、Muon、Adafactor；内存不足时自动重算激活、缩短单次前向",
        ("train/test_optim.py", "train/test_probe.py"),
    ),
    (
        "Answers in our own batches: no padding, common beginnings read once, base and tuned model together; greedy "
        "answers are those of `transformers.generate` token for token, for nine model families; steps in C++ in bf16",
        "自有批量生成：无填充，公共前缀只读一次，底座与微调模型同批回答；贪心结果与 `transformers.generate` 逐词元一致（九个模型家族）；"
        "bf16 下解码步骤用 C++ 完成",
        ("infer/test_batching.py", "infer/test_choosing.py", "model/test_decode_native.py"),
    ),
    (
        "Chat that streams, with /save, /load and /compare; answers to files, beams and sampling with conflicts explained; "
        "answers by a JSON schema; log-probabilities",
        "流式对话（/save、/load、/compare）、批量回答文件、束搜索与采样，冲突的参数会被解释；按 JSON schema 回答；词元对数概率",
        (
            "infer/test_generate.py",
            "infer/test_stream.py",
            "infer/test_sampling.py",
            "infer/test_guide.py",
            "cli/test_chat.py",
        ),
    ),
    (
        "`serve`: an OpenAI-compatible server for runs and their base, streams, requests in one running batch, answers the same as "
        "alone; a key by default, this machine alone; what isn't supported is refused by name",
        "`serve`：为训练结果及其底座提供 OpenAI 兼容接口，支持流式输出，请求随到随入同一批次，回答与单独请求一致；默认需要密钥、只监听本机；"
        "不支持的字段会被点名拒绝",
        (
            "serve/test_openai.py",
            "serve/test_openai_client.py",
            "serve/test_asking.py",
            "serve/test_load.py",
            "serve/test_served_models.py",
            "serve/test_api_guard.py",
            "infer/test_live.py",
            "cli/test_serve.py",
        ),
    ),
    (
        "`sweep`: the same prompts under many settings side by side, with figures of how varied the answers are",
        "`sweep`：同一提示在多组参数下并排对比，并给出多样性指标",
        ("evaluate/test_sweep.py", "cli/test_sweep.py"),
    ),
    (
        "Before and after: loss, perplexity and metrics by name (exact match, F1, SQuAD, CMRC 2018, ROUGE, BLEU, chrF, labels, multiple choice, verse, your own), with intervals and a plain verdict",
        "前后对比：损失、困惑度与各种指标（完全匹配、F1、SQuAD、CMRC 2018、ROUGE、BLEU、chrF、分类、选择题、诗句格式、自定义函数），带置信区间和明确结论",
        (
            "evaluate/test_metrics.py",
            "evaluate/test_published_metrics.py",
            "evaluate/test_read_metrics.py",
            "evaluate/test_form_metrics.py",
            "evaluate/test_shown_choices.py",
            "evaluate/test_calibration.py",
            "evaluate/test_compare.py",
        ),
    ),
    (
        "Answers scored by metrics while training runs; the best step and early stopping by any of them, training's bits unchanged",
        "训练过程中用指标给回答打分；按任一指标选最佳步和提前停止，训练结果逐位不变",
        ("evaluate/test_examine.py", "train/test_examine.py"),
    ),
    (
        "Any number of models against the first, from one load where they share a base, verdicts corrected over all; what answers cost",
        "任意多个模型与第一个对比，同一底模只加载一次，结论按全部检验校正；回答的开销",
        ("evaluate/test_several.py", "evaluate/test_sides.py", "evaluate/test_cost.py"),
    ),
    (
        "What means don't say: general knowledge lost, answers copied from training rows, whether the training data holds "
        "the true answers, why the worst are wrong, rows that changed, and what to change",
        "均值之外的发现：丢失的通用知识、照抄训练数据的回答、训练数据里有没有答案、最差的回答为什么错、变化的数据行，以及可以怎么改",
        (
            "evaluate/findings/test_general.py",
            "evaluate/findings/test_copied.py",
            "evaluate/findings/test_coverage.py",
            "evaluate/findings/test_findings.py",
            "evaluate/findings/test_probes.py",
            "evaluate/findings/test_wrong.py",
        ),
    ),
    (
        "Answers of any tool scored from a file and compared with models, figures by group, intervals over documents",
        "给任何工具生成的答案文件打分并与模型比较，按组给出数字，按文档计算区间",
        ("evaluate/test_predicted.py", "evaluate/test_joined.py"),
    ),
    (
        "Models behind OpenAI-compatible endpoints answer, are measured and judge: retries, Retry-After, failed rows counted and "
        "left out of figures, keys from the environment alone",
        "OpenAI 兼容接口的模型可用于回答、评测和评审：自动重试并遵守 Retry-After，失败的行单独计数、不计入指标，密钥只取自环境变量",
        ("infer/test_endpoint.py", "evaluate/test_endpoints.py"),
    ),
    (
        "A model as judge: pairs in both orders, or a rubric from 1 to 5; flips, first-position rate, taste for length, malformed "
        "replies counted; no call made twice",
        "模型评审：两种顺序成对比较，或按 1–5 分的评分标准；统计翻转率、首位偏好、长度偏好与无效回复；调用绝不重复",
        ("evaluate/judge/test_judging.py", "evaluate/judge/test_sides.py"),
    ),
    (
        "Public benchmarks of lm-evaluation-harness on a run with its adapter unmerged; figures equal those of its own model class",
        "无需合并适配器即可在运行结果上跑 lm-evaluation-harness 公开基准；数字与其自带模型类一致",
        ("evaluate/test_harness.py",),
    ),
    (
        "Blind tests by people, on a local page or with one file to send: sealed sides, repeats, several raters; exact sign "
        "test, Wilson interval, agreement, how many votes are needed",
        "人工盲测，使用本地网页或一个可发送的文件：左右顺序密封、重复题、多位评审；精确符号检验、Wilson 区间、一致性、所需票数",
        (
            "evaluate/test_votes.py",
            "evaluate/blind/test_sealing.py",
            "evaluate/blind/test_page.py",
            "evaluate/blind/test_report.py",
            "serve/test_blind.py",
        ),
    ),
    (
        "`report`: a run or a result as one offline page, light and dark, Chinese and English, every figure with its n and "
        "interval, charts, groups, all rows searchable; also Markdown and JSON",
        "`report`：把一次训练或一个评测结果写成单文件离线网页，明暗两色、中英双语，每个数字都有 n 与区间，含图表与分组，全部行可搜索；也可输出 Markdown 和 JSON",
        (
            "evaluate/test_report.py",
            "evaluate/test_report_page.py",
            "evaluate/test_report_rows.py",
            "evaluate/test_report_formats.py",
            "cli/test_report.py",
        ),
    ),
    (
        "Loss curve as picture and in the terminal, `runs list` at once",
        "损失曲线（图片与终端）、`runs list` 瞬时返回",
        ("evaluate/test_curve.py", "cli/test_runs.py", "test_startup.py"),
    ),
    (
        "Answers and figures of whole files go on after a kill at any instant, no row computed twice, the result the "
        "same",
        "批量回答与评测随时被杀都能接着做：已完成的行不重算，结果不变",
        (
            "test_worklog.py",
            "infer/test_predictions.py",
            "evaluate/test_continued.py",
            "faults/test_matrix.py",
        ),
    ),
    (
        "In each step: memory that runs out, losses that aren't numbers or jump, the rows that cost most; each fault "
        "injected for real, each guard seen to fail when it's taken out",
        "每一步都有防护：内存不足自动减半重试，非有限值与损失突跳会被发现，损失最高的行会列出；每种故障都真实注入，去掉防护则测试必败",
        (
            "train/test_memory.py",
            "train/test_spikes.py",
            "train/test_worst.py",
            "train/test_reader.py",
            "faults/test_matrix.py",
        ),
    ),
    (
        "Exports as merged weights (LoRA, DoRA, rsLoRA, PiSSA, full, freeze; 4-bit runs into the 16-bit base) or as a "
        "PEFT adapter, with model card; read back and compared with the tuned model: tokens, template, exact KL, "
        "answers, and whether the fine-tune is in it",
        "导出为合并后的权重（LoRA、DoRA、rsLoRA、PiSSA、全参数、冻结；4 比特训练合并到 16 比特底座）或 PEFT 适配器，附模型卡片；"
        "导出后重新读取并与微调模型对比：分词、模板、精确 KL、回答，以及微调是否仍在其中",
        (
            "export/test_merge.py",
            "export/test_export.py",
            "export/test_mistakes.py",
            "export/test_embedded.py",
        ),
    ),
    (
        "Exports as GGUF (f16, bf16, f32, q8_0 to q4_0; llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3) and for Ollama "
        "with a Modelfile; llama.cpp itself then has to give the same tokens, template and scores",
        "导出为 GGUF（f16、bf16、f32、q8_0 至 q4_0；llama、mistral、qwen2、qwen3、gemma2、gemma3、phi3），或附 Modelfile 供 Ollama 使用；"
        "之后由 llama.cpp 本身给出相同的分词、模板和得分才算通过",
        (
            "export/test_gguf_export.py",
            "export/test_gguf_families.py",
            "export/test_gguf_tokens.py",
            "export/test_ollama.py",
        ),
    ),
    (
        "Bad input ends with one message, the right exit code, and nothing half-written",
        "错误输入只给出一条清楚的说明和正确的退出码，不留下半成品文件",
        ("e2e/test_bad_input.py",),
    ),
]


def table(language: str) -> str:
    """The table in English ("en") or Chinese ("zh"); a line whose test files aren't there is an error."""
    head = ("Works today", "shown by") if language == "en" else ("现在可用", "对应测试")
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for english, chinese, files in FEATURES:
        if missing := [file for file in files if not (ROOT / "tests" / file).is_file()]:
            raise ValueError(f"no such tests: {missing}")
        links = ", ".join(f"[{Path(file).stem}](tests/{file})" for file in files)
        lines.append(f"| {english if language == 'en' else chinese} | {links} |")
    return "\n".join(lines)


def filled(text: str, language: str) -> str:
    """A README with its table and the count above it renewed. Raises ValueError when their places are lost."""
    before, found, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError("the README has lost the markers of its table of features")
    before, changed = re.subn(*SENTENCES[language], before)
    if changed != 1:
        raise ValueError("the README has lost its sentence about model families")
    return f"{before}{START}\n{table(language)}\n{END}{after}"


def write() -> None:
    """Renew the table in both READMEs."""
    for name, language in (("README.md", "en"), ("README.zh-CN.md", "zh")):
        file = ROOT / name
        file.write_text(filled(file.read_text(encoding="utf-8"), language), encoding="utf-8")


if __name__ == "__main__":
    write()
