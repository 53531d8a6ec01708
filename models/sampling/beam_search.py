"""Beam search: the likeliest continuations of a prompt. Shape letters: see layers.py; B counts beams.

Source: Graves 2012, Sequence Transduction with Recurrent Neural Networks, section 3; sums of log probabilities, not
divided by length.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.registry import SampledModel
from models.sampling.grammar_mask import GrammarArrays, GrammarRows, GrammarTables
from models.sampling.sample import check_absent, check_prompt, evaluated, tables_for


class Beam(NamedTuple):
    """A continuation: all ids, the prompt included, and the sum of the log probabilities of those after it."""

    ids: Tensor
    log_probability: float


@torch.inference_mode()
def beam_search(
    model: SampledModel,
    prompt: Tensor,
    n_beams: int,
    max_tokens: int,
    grammar: GrammarTables | GrammarArrays | None = None,
    *,
    end_id: int,
    pad_id: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> list[Beam]:
    """Return up to `n_beams` continuations of a prompt, the likeliest first.

    A continuation ends with `end_id` or at `max_tokens`. Each step keeps the `n_beams` likeliest beginnings; the search
    is over when none of them can become likelier than the ended ones that were found.

    Args:
        model: one with latents must have the same one for pieces 0 to `n_beams - 1`.
        prompt: int64 vector of at least one id, shorter than `max_tokens`, without `pad_id` and `end_id`.
        max_tokens: longest continuation, its prompt included; no more than the model reads.
        grammar: ids that would break it have probability 0; the prompt must obey it.
        on_step: called after each step with the ids of the longest beginning after its prompt.
    Raises:
        ValueError: fewer than one beam; a prompt that `sample` would refuse; a grammar without a way on; a length
            beyond what the model reads.
    """
    if n_beams < 1:
        raise ValueError(f"n_beams={n_beams} is below 1")
    check_prompt(prompt, "the prompt", max_tokens, model.vocab_size)
    check_absent(prompt, "the prompt", {"end": end_id, "padding": pad_id})
    return _Search(evaluated(model), prompt, n_beams, max_tokens, grammar, end_id, pad_id).run(on_step)


class _Search:
    def __init__(
        self,
        model: SampledModel,
        prompt: Tensor,
        n_beams: int,
        max_tokens: int,
        grammar: GrammarTables | GrammarArrays | None,
        end_id: int,
        pad_id: int,
    ) -> None:
        device = model.embed.weight.device
        self.model, self.n_beams, self.max_tokens, self.end_id, self.pad_id = model, n_beams, max_tokens, end_id, pad_id
        self.cache = model.new_cache(n_beams, max_tokens)
        self.rows = None if grammar is None else GrammarRows(tables_for(model, grammar), n_beams)
        self.ids_BJ = torch.full((n_beams, max_tokens), pad_id, dtype=torch.long, device=device)
        self.ids_BJ[0, : len(prompt)] = prompt
        self.length = len(prompt)
        self.score_B = torch.zeros(1, dtype=torch.float64, device=device)  # one beginning so far: the prompt
        self.ended: list[Beam] = []
        self.cache.start_row(0, 0)
        if self.rows is not None:
            self.rows.walk(0, prompt.tolist())
        if self.length > 1:
            self.model(self.ids_BJ[:1, : self.length - 1], self.cache.rows(0, 1))

    def run(self, on_step: Callable[[int], object] | None) -> list[Beam]:
        n_prompt = self.length
        while len(self.score_B) and self.length < self.max_tokens:
            self.step()
            self.length += 1
            if on_step is not None:
                on_step(self.length - n_prompt)
            if len(self.ended) >= self.n_beams and self.best()[-1].log_probability >= self.likeliest_beginning():
                return self.best()
        for row, score in enumerate(self.score_B.tolist()):
            self.ended.append(Beam(self.ids_BJ[row, : self.length].cpu().clone(), score))
        return self.best()

    def best(self) -> list[Beam]:
        return sorted(self.ended, key=lambda beam: (-beam.log_probability, beam.ids.tolist()))[: self.n_beams]

    def likeliest_beginning(self) -> float:
        return float(self.score_B.max()) if len(self.score_B) else -math.inf

    def step(self) -> None:
        """Make every beginning longer by one id, in all ways, and keep the likeliest."""
        n = len(self.score_B)
        last_B1 = self.ids_BJ[:n, self.length - 1 : self.length]
        logits_BV = self.model(last_B1, self.cache.rows(0, n))[:, 0].double()
        logits_BV[:, self.pad_id] = -math.inf
        if self.rows is not None:
            logits_BV.masked_fill_(self.rows.forbidden(n), -math.inf)
        if not bool(logits_BV.amax(dim=-1).isfinite().all()):
            raise ValueError(
                f"no id is possible at position {self.length}: by the grammar, or the logits are no numbers"
            )
        total_BV = self.score_B[:, None] + logits_BV.log_softmax(dim=-1)
        for row, score in enumerate(total_BV[:, self.end_id].tolist()):
            if score > -math.inf:
                ids = torch.cat([self.ids_BJ[row, : self.length].cpu(), torch.tensor([self.end_id])])
                self.ended.append(Beam(ids, score))
        self.ended = self.best()
        total_BV[:, self.end_id] = -math.inf
        order = total_BV.flatten().sort(descending=True, stable=True)
        n_kept = min(self.n_beams, int((order.values > -math.inf).sum()))
        parents = (order.indices[:n_kept] // self.model.vocab_size).tolist()
        self.keep(parents, order.indices[:n_kept] % self.model.vocab_size, order.values[:n_kept])

    def keep(self, parents: list[int], ids_B: Tensor, score_B: Tensor) -> None:
        """Put each kept beginning into a row: its parent's, if that has no other child yet, otherwise a free one."""
        free = [row for row in range(self.n_beams) if row not in set(parents)]
        rows, taken = [], set[int]()
        for parent in parents:
            row = free.pop() if parent in taken else parent
            if row != parent:
                self.copy(parent, row)
            taken.add(parent)
            rows.append(row)
        self.pack(rows)
        n, order = len(rows), torch.tensor(rows, device=ids_B.device).argsort()
        self.score_B = score_B[order]
        self.ids_BJ[:n, self.length] = ids_B[order]
        if self.rows is not None:
            self.rows.advance(ids_B[order])

    def pack(self, rows: list[int]) -> None:
        """Move the rows in use to the front, in the order they had."""
        for target, source in enumerate(sorted(rows)):
            if source != target:
                self.copy(source, target)

    def copy(self, source: int, target: int) -> None:
        self.cache.copy_row(source, target)
        self.ids_BJ[target] = self.ids_BJ[source]
        if self.rows is not None:
            self.rows.copy_row(source, target)
