"""Every sentence of the findings in English and Chinese; {names} are filled with numbers, names, texts."""

from __future__ import annotations

import re

SENTENCES: dict[str, tuple[str, str]] = {
    # titles
    "forgetting": ("General questions", "通用问题"),
    "copied": ("Copied from the training rows", "照抄训练数据"),
    "coverage": ("Does the training data hold the answers?", "训练数据里有没有答案？"),
    "invention": ("Why the worst answers are wrong", "最差的回答错在哪里"),
    "changed": ("Rows that changed", "变化的数据行"),
    "worst": ("Rows with the lowest score", "得分最低的数据行"),
    "advice": ("What to change", "可以怎么改"),
    # forgetting
    "asked": (
        "A answers {a} of {n} general questions rightly, {who} {b}: {who} − A = {difference} (McNemar: {p}).",
        "{n} 个通用问题，A 答对 {a} 个，{who} 答对 {b} 个：{who} − A = {difference}（McNemar：{p}）。",
    ),
    "languages": (
        "Chinese ones: A {a_zh}, {who} {b_zh} of {n_zh}; English ones: A {a_en}, {who} {b_en} of {n_en}.",
        "中文题 {n_zh} 个，A 对 {a_zh}，{who} 对 {b_zh}；英文题 {n_en} 个，A 对 {a_en}，{who} 对 {b_en}。",
    ),
    "forgot": (
        "{who} has lost general knowledge: {lost} right before and wrong now, {gained} the other way round.",
        "{who} 丢失了通用知识：{lost} 题原来对、现在错，{gained} 题相反。",
    ),
    "learnt": (
        "{who} answers general questions better than A: {gained} wrong before and right now, {lost} the "
        "other way round.",
        "{who} 的通用问题答得比 A 好：{gained} 题原来错、现在对，{lost} 题相反。",
    ),
    "not_told": (
        "Forgetting can't be told from so few: {lost} right before and wrong now, {gained} the other "
        "way round.",
        "这些题还不足以判断是否遗忘：{lost} 题原来对、现在错，{gained} 题相反。",
    ),
    "knew_little": (
        "A itself knows too few of them for forgetting to show.",
        "A 本身会的就太少，看不出遗忘。",
    ),
    "took": (
        "Asking both took {time}; --no-forgetting leaves it out.",
        "两个模型共用时 {time}；--no-forgetting 可跳过。",
    ),
    # training rows
    "unread": (
        "Copying and coverage weren't looked at: {reason}",
        "没有检查照抄与覆盖：{reason}",
    ),
    "gone": (
        "{gone} rows that it learnt from are no longer in the files of its job, and weren't looked at.",
        "它学过的 {gone} 条数据已不在任务文件中，未参与检查。",
    ),
    # copied
    "copies": (
        "{b} of {n} answers copy {least} or more characters (words) in a row from an answer that "
        "{model} was trained on.",
        "{n} 个回答中有 {b} 个从 {model} 的训练回答里连续照抄了 {least} 个以上的字（词）。",
    ),
    "copies_none": (
        "None of the {n} answers copies {least} characters (words) in a row from an answer that "
        "{model} was trained on.",
        "{n} 个回答都没有从 {model} 的训练回答里连续照抄 {least} 个以上的字（词）。",
    ),
    "copies_floor": (
        "Of A's answers {a} do, by chance: {who} − A = {difference}.",
        "A 的回答中有 {a} 个碰巧如此：{who} − A = {difference}。",
    ),
    "recites": ("It recites what it was trained on.", "它在背诵训练数据。"),
    "no_floor": ("That may be chance.", "这可能是巧合。"),
    # coverage
    "held": (
        "Of {n} true answers the training data holds {held} (half of the words or more in one row, "
        "rare words weigh more).",
        "{n} 个标准答案中，训练数据包含 {held} 个（一条数据里有其一半以上的词，罕见词权重更大）。",
    ),
    "by_letter": (
        "In {letters} rows the reference is the letter of a choice: looked for is that choice's text.",
        "{letters} 行的参考答案是选项的字母：查找的是该选项的文字。",
    ),
    "held_scores": (
        "Rows whose answer is there score {inside} in {metric}, the others {outside}: difference "
        "{difference}.",
        "答案在其中的数据行 {metric} 为 {inside}，其余为 {outside}：差 {difference}。",
    ),
    "held_better": ("What it could read, it answers better.", "它读到过的，就答得更好。"),
    "held_worse": (
        "What it could read, it answers worse: something else makes those rows hard.",
        "它读到过的反而答得更差：这些行另有难处。",
    ),
    "held_unclear": (
        "Whether that makes a difference can't be told from these rows.",
        "凭这些数据看不出这是否有影响。",
    ),
    # invention
    "wrong_below": (
        "{wrong} rows score below {limit} in {metric}; {n} of them are looked at ({most} at most, the "
        "lowest; no empty answers and none cut at the limit).",
        "{wrong} 行的 {metric} 低于 {limit}；"
        "查看其中 {n} 行（最低的至多 {most} 行，不含空回答与因长度上限中断的回答）。",
    ),
    "wrong_above": (
        "{wrong} rows score above {limit} in {metric}, where less is better; {n} of them are looked at "
        "({most} at most, the highest; no empty answers and none cut at the limit).",
        "{wrong} 行的 {metric}（越低越好）高于 {limit}；查看其中 {n} 行"
        "（最高的至多 {most} 行，不含空回答与因长度上限中断的回答）。",
    ),
    "wrong_third": (
        "Looked at are {n} of the {wrong} rows that are the worst third by {metric} ({most} at most, the "
        "worst; no empty answers and none cut at the limit).",
        "按 {metric} 最差的三分之一共 {wrong} 行，查看其中 {n} 行"
        "（最差的至多 {most} 行，不含空回答与因长度上限中断的回答）。",
    ),
    "own_likelier": (
        "In {own} of these {n} the model finds its own answer, as a whole, likelier than the true one: no "
        "search for likelier texts would have led there.",
        "这 {n} 行中有 {own} 行，模型认为自己的回答整体上比标准答案更可能："
        "再怎么搜索更可能的文本也得不到标准答案。",
    ),
    "truth_likelier": (
        "In {truth} it finds the true answer, as a whole, likelier than its own: token by token that one was "
        "missed. Per token too it is likelier in {per_token} of these; elsewhere for being shorter alone.",
        "有 {truth} 行它认为标准答案整体上比自己的回答更可能：逐个选 token 时错过了它。"
        "其中 {per_token} 行按每个 token 平均也更可能；其余只是因为更短。",
    ),
    "not_held": (
        "Of these {n} true answers {missing} aren't in the training data.",
        "这 {n} 个标准答案中有 {missing} 个不在训练数据里。",
    ),
    # changed
    "moved": (
        "By {metric} {better} rows got better and {worse} worse; {same} answers say the same as before.",
        "按 {metric}，{better} 行变好，{worse} 行变差；{same} 个回答与之前相同。",
    ),
    # advice
    "not_in_data": (
        "Most true answers of the rows that went wrong aren't in the training data: facts that the model "
        "didn't know before it can only invent. Add rows that say them, or give it the text together with "
        "the question (retrieval); more epochs won't help.",
        "答错的行，标准答案多数不在训练数据里：模型原来不知道的事实只能编造。请加入包含这些事实的数据，"
        "或把原文和问题一起给模型（检索）；增加轮数没有用。",
    ),
    "not_learnt": (
        "The training data holds most of these answers, and the model finds its own likelier: train longer "
        "or with a higher learning rate or rank, and say the same facts in several rows with other words.",
        "训练数据里多数有这些答案，模型却认为自己的回答更可能：多训练几轮，或提高学习率、秩，并用不同说法在多条数据里重复同样的事实。",
    ),
    "decoding": (
        "It finds most true answers likelier than what it wrote: answer greedily or with a lower "
        "temperature, without repetition_penalty and no_repeat_ngram_size, or search wider (num_beams).",
        "它认为多数标准答案比自己写出的更可能：用贪心解码或更低的 temperature，"
        "去掉 repetition_penalty 与 no_repeat_ngram_size，或扩大搜索（num_beams）。",
    ),
    "recited": (
        "It recites rows: fewer epochs, a lower learning rate or rank, or more and more varied rows.",
        "它在背诵数据：减少轮数，降低学习率或秩，或增加更多样的数据。",
    ),
    "forgets": (
        "It forgets what it knew: fewer epochs, a lower learning rate, or mix general rows into the "
        "training data.",
        "它忘掉了原来会的：减少轮数，降低学习率，或在训练数据里混入通用数据。",
    ),
    # columns
    "row": ("row", "行"),
    "question": ("question", "问题"),
    "answer": ("right answer", "正确答案"),
    "reference": ("reference", "参考答案"),
    "change": ("change", "变化"),
    "score": ("score", "得分"),
    "before": ("A's answer", "A 的回答"),
    "after": ("{who}'s answer", "{who} 的回答"),
    "said": ("its answer", "它的回答"),
    "log_own": ("log p of its answer (tokens)", "自己回答的 log p（token 数）"),
    "log_true": ("log p of the true one (tokens)", "标准答案的 log p（token 数）"),
    "in_data": ("true answer in the data", "训练数据含标准答案"),
    "nearest": ("nearest training row", "最接近的训练数据"),
    "length": ("length", "长度"),
    "copied_text": ("copied", "照抄内容"),
    "of_answer": ("of the answer", "占回答"),
    "from_row": ("from", "来自"),
    # cells
    "lost": ("now wrong", "变错"),
    "gained": ("now right", "变对"),
    "got_better": ("better", "更好"),
    "got_worse": ("worse", "更差"),
}
"""By name: (English, Chinese). {who} is the letter of B."""


def say(name: str, *, who: str = "B", **values: object) -> str:
    """The English sentence of this name; `who` is what B is called among several."""
    return SENTENCES[name][0].format(who=who, **values)


def phrases() -> list[tuple[str, str]]:
    """Regular expressions of all English sentences, with Chinese expansions, as chinese.py takes them."""
    return [
        (_pattern(english) + "$", _NAME.sub(r"\\g<\1>", chinese)) for english, chinese in SENTENCES.values()
    ]


def _pattern(english: str) -> str:
    """A field that comes again has the same text again."""
    seen: set[str] = set()

    def group(field: re.Match[str]) -> str:
        name = field[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[A-Z])" if name == "who" else f"(?P<{name}>.*)"

    return _FIELD.sub(group, re.escape(english))


_FIELD = re.compile(r"\\{(\w+)\\}")
_NAME = re.compile(r"\{(\w+)\}")
