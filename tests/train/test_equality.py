"""Every way to lay out the same rows gives the same loss and the same gradients (fp32, all families)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.families import FAMILIES, tiny_model
from tunesmith.data.batch import collate
from tunesmith.data.encode import Example
from tunesmith.errors import ModelError
from tunesmith.model.attention import can_segment, can_share, segment_attention
from tunesmith.model.families import MIXTURES, packed_inputs
from tunesmith.records import Origin
from tunesmith.train.forward import label_logits
from tunesmith.train.objectives import sft

GRADIENT_TOLERANCE = 1e-5  # relative norm
LOSS_TOLERANCE = 1e-6


def rows(vocabulary: int, lengths: Sequence[int] = (5, 23, 11, 40, 2, 17, 9, 31)) -> list[Example]:
    """Random rows whose label counts differ as much as their lengths."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for i, length in enumerate(lengths):
        ids = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        labelled = torch.rand(length, generator=generator) < (0.2 + 0.1 * i)
        mask = [False, *labelled[1:].tolist()]
        mask[-1] = True
        made.append(Example(input_ids=ids, label_mask=mask, origin=Origin("rows", i + 1, i), row=i))
    return made


def gradients(
    model: PreTrainedModel,
    groups: Sequence[Sequence[Example]],
    *,
    packing: bool,
    pad_id: int = 0,
    segments: bool = False,
    sharing: bool = False,
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step made of these microbatches."""
    model.zero_grad(set_to_none=True)
    objective = sft()
    total = sum(sum(row.label_mask) for group in groups for row in group)
    loss_sum = 0.0
    with segment_attention(model, segments):
        for group in groups:
            batch = collate(group, packing=packing, pad_id=pad_id, sharing=sharing)
            loss, count = objective.loss(model, batch)
            assert count == sum(sum(row.label_mask) for row in group)
            (loss / total).backward()
            loss_sum += float(loss.detach())
    return loss_sum / total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=LOSS_TOLERANCE)
    assert one[1].keys() == other[1].keys()
    # One norm over everything: the true gradient of a bias of attention keys is zero, rounding noise alone.
    difference = torch.sqrt(sum(((g - other[1][n]) ** 2).sum() for n, g in one[1].items()))
    size = torch.sqrt(sum((g**2).sum() for g in other[1].values()))
    assert float(difference / size) < GRADIENT_TOLERANCE


def assert_untouched(model: PreTrainedModel, before: Tensor, after: Tensor) -> None:
    """Bit-identical; with experts, whose products hold tokens of all rows, but for rounding."""
    if model.config.model_type in MIXTURES:
        torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)
    else:
        assert torch.equal(before, after)


@pytest.fixture(params=[*FAMILIES, "olmoe"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param).train()


@pytest.fixture
def singly(model: PreTrainedModel) -> tuple[float, dict[str, Tensor]]:
    return alone(model, rows(model.config.vocab_size))


def alone(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[float, dict[str, Tensor]]:
    """The reference: each row alone, by transformers' own loss on its own labels."""
    model.zero_grad(set_to_none=True)
    total = sum(sum(row.label_mask) for row in examples)
    loss_sum = 0.0
    for row in examples:
        ids = torch.tensor([row.input_ids])
        labels = torch.tensor(
            [[i if m else -100 for i, m in zip(row.input_ids, row.label_mask, strict=True)]]
        )
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss * sum(row.label_mask)
        (loss / total).backward()
        loss_sum += float(loss.detach())
    return loss_sum / total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_one_pack_equals_single_rows(model: PreTrainedModel, singly: tuple[float, dict[str, Tensor]]) -> None:
    assert_same(gradients(model, [rows(model.config.vocab_size)], packing=True), singly)


def test_microbatches_equal_one_batch(
    model: PreTrainedModel, singly: tuple[float, dict[str, Tensor]]
) -> None:
    examples = rows(model.config.vocab_size)
    assert_same(gradients(model, [examples[:1], examples[1:6], examples[6:]], packing=True), singly)
    assert_same(gradients(model, [[row] for row in examples], packing=False), singly)


def test_attention_by_segments_equals_single_rows(
    model: PreTrainedModel, singly: tuple[float, dict[str, Tensor]]
) -> None:
    examples = rows(model.config.vocab_size)
    assert can_segment(model) == (True, "")
    assert_same(gradients(model, [examples[:3], examples[3:]], packing=True, segments=True), singly)


def related(vocabulary: int) -> list[Example]:
    """Rows that share beginnings three levels deep, beyond any window, with labels in what they share."""
    made = rows(vocabulary, (14, 12, 9, 11, 6, 17, 21, 5))
    a, b, c = (made[i].input_ids for i in range(3))
    begins = ([*a, *b, *c], [*a, *b, *c], [*a, *b], [*a, *b], a, a, [], a)
    grown = []
    for row, begin in zip(made, begins, strict=True):
        ids = [*begin, *row.input_ids]
        # Masks differ between rows: what one row predicts there, another only reads.
        shared_labels = [t % (row.row + 2) == 1 for t in range(len(begin))]
        mask = [*shared_labels, *row.label_mask]
        grown.append(Example(ids, [False, *mask[1:]], row.origin, row.row))
    return [*grown, grown[2], Example(a, [False] * 13 + [True], made[0].origin, 8)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_beginnings_equal_single_rows(model: PreTrainedModel, checkpointing: bool) -> None:
    examples = related(model.config.vocab_size)
    wanted = alone(model, examples)
    assert can_share(model) == (True, "")
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    batch = collate(examples, packing=True, pad_id=0, sharing=True)
    depths: list[int] = []
    for _, _, parent in batch.segments.tolist():
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    assert max(depths) == 3
    assert batch.unique_tokens < 0.6 * batch.tokens
    shared = gradients(model, [examples], packing=True, segments=True, sharing=True)
    assert_same(shared, wanted)
    assert_same(gradients(model, [examples], packing=True, segments=True), wanted)


@pytest.mark.parametrize("pad_id", [0, 3])
def test_padding_changes_nothing(
    model: PreTrainedModel, singly: tuple[float, dict[str, Tensor]], pad_id: int
) -> None:
    # Whatever the pad token is, even one that is a label elsewhere: padding is told apart by length.
    examples = rows(model.config.vocab_size)
    assert_same(gradients(model, [examples], packing=False, pad_id=pad_id), singly)


@pytest.mark.parametrize("sharing", [False, True])
def test_a_change_in_one_row_leaves_the_others_bit_identical(model: PreTrainedModel, sharing: bool) -> None:
    examples = related(model.config.vocab_size)
    states = []
    for ids in (examples[0].input_ids, [*examples[0].input_ids[:-3], 1, 2, 3]):
        # One that shares its beginning with others, but for its end.
        mixed = [Example(ids, examples[0].label_mask, examples[0].origin, 0), *examples[1:]]
        batch = collate(mixed, packing=True, pad_id=0, sharing=sharing)
        with torch.no_grad(), segment_attention(model):
            out = model(**packed_inputs(model, batch), output_hidden_states=True)
        states.append((torch.stack(out.hidden_states)[:, 0], batch.input_ids[0]))
    (before, ids_before), (after, ids_after) = states
    same = ids_before == ids_after
    assert 1 <= int((~same).sum()) <= 3
    assert_untouched(model, before[:, same], after[:, same])
    assert not torch.equal(before[-1, ~same], after[-1, ~same])


def test_rows_of_a_pack_do_not_see_each_other(model: PreTrainedModel) -> None:
    model.eval()
    first, second, third = rows(model.config.vocab_size, (21, 33, 14))
    changed = Example(
        input_ids=[(i + 1) % model.config.vocab_size for i in first.input_ids],
        label_mask=first.label_mask,
        origin=first.origin,
        row=0,
    )
    states = []
    for row in (first, changed):
        batch = collate([row, second, third], packing=True, pad_id=0)
        with torch.no_grad():
            out = model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                output_hidden_states=True,
            )
        states.append(torch.stack(out.hidden_states)[:, 0])
    assert not torch.equal(states[0][-1, :21], states[1][-1, :21])
    assert_untouched(model, states[0][:, 21:], states[1][:, 21:])


def test_a_model_that_swallows_logits_to_keep_is_refused() -> None:
    model = tiny_model("llama")
    own = model.forward
    model.forward = lambda logits_to_keep, **inputs: own(**inputs)  # noqa: ARG005
    with pytest.raises(ModelError, match="logits_to_keep"):
        label_logits(model, collate(rows(model.config.vocab_size, (5, 9)), packing=True, pad_id=0))


def test_mean_per_microbatch_would_be_caught() -> None:
    # The mistake this project exists to prevent: average each microbatch, then average the averages.
    model = tiny_model("llama").train()
    examples = rows(model.config.vocab_size)
    right = gradients(model, [[row] for row in examples], packing=True)
    model.zero_grad(set_to_none=True)
    objective = sft()
    for row in examples:
        loss, count = objective.loss(model, collate([row], packing=True, pad_id=0))
        (loss / count / len(examples)).backward()
    wrong = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with pytest.raises(AssertionError):
        assert_same((right[0], wrong), right)
