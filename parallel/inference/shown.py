"""What a found prompt is and does, as lines in 80 columns."""

import textwrap
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paralab.data.tokenizer import Tokenizer
from paralab.inference.inversion import Inverted, Table, greedy, losses


@dataclass(frozen=True)
class Shown:
    """A found prompt beside the text (tokens,) that it is for, and the true prompt (tokens,), where there is one."""

    model: nn.Module
    table: Table
    tokenizer: Tokenizer
    text: Tensor
    found: Inverted
    prompt: Tensor | None

    def lines(self) -> list[str]:
        """Return what the model writes after each prompt, and where the vectors lie."""
        best = self.found.vectors[self.found.best]
        nearest, distance = self.table.nearest(best)
        lines = [
            f"restart {self.found.best} has the lowest loss; the model writes after",
            *self._after("its vectors", best),
        ]
        lines += self._after(f"the tokens nearest to them, {self._quoted(nearest)}", self.table.vectors[nearest])
        if self.prompt is not None:
            lines += self._after(f"the true prompt, {self._quoted(self.prompt)}", self.table.vectors[self.prompt])
        return [*lines, "", *self._restarts(), "", *self._places(best, nearest, distance)]

    @torch.no_grad()
    def _after(self, what: str, vectors: Tensor) -> list[str]:
        loss = float(losses(self.model, self.table, vectors[None], self.text))
        (written,) = self._written(vectors[None])
        same = int((written == self.text).long().cumprod(0).sum())
        verdict = "the text" if same == len(self.text) else f"{same} of {len(self.text)} tokens of the text"
        return [
            *textwrap.wrap(f"{what}:", 78, initial_indent="  ", subsequent_indent="    ", drop_whitespace=True),
            f"    {verdict}, loss {loss:.4f}",
            *textwrap.wrap(self._quoted(written), 76, initial_indent="    ", subsequent_indent="    "),
        ]

    def _written(self, vectors: Tensor) -> Tensor:
        return greedy(self.model, self.table, vectors, tokens=len(self.text), known=self.tokenizer.vocab_size)

    def _quoted(self, tokens: Tensor) -> str:
        return repr(self.tokenizer.decode(tokens.tolist()))

    def _restarts(self) -> list[str]:
        """Say how many restarts write the text, and how far apart they end."""
        vectors = self.found.vectors
        wrote = int((self._written(vectors) == self.text).all(-1).sum())
        lines = [f"{wrote} of {len(vectors)} restarts write the text"]
        if len(vectors) > 1:
            apart = torch.stack([(vectors[i] - vectors[:i]).norm(dim=-1).mean() for i in range(1, len(vectors))]).mean()
            lines.append(f"distance between restarts: {self._units(float(apart))}")
        return lines

    def _units(self, distance: float) -> str:
        return f"{distance / self.table.typical_distance:.2f} of that between two tokens"

    def _places(self, best: Tensor, nearest: Tensor, distance: Tensor) -> list[str]:
        """Say which token each vector is nearest to, and how far from it and from the true one."""
        true = self.prompt if self.prompt is not None and len(self.prompt) == len(best) else None
        lines = ["distances, in units of the mean distance between two tokens"]
        lines.append(
            "vector  nearest token        to it" + ("  true token           to it" if true is not None else "")
        )
        for i in range(len(best)):
            line = f"{i:>6}  {self._token(nearest[i]):<18} {self._ratio(distance[i])}"
            if true is not None:
                away = (best[i] - self.table.vectors[true[i]]).norm()
                line += f"  {self._token(true[i]):<18} {self._ratio(away)}"
            lines.append(line)
        return lines

    def _token(self, token: Tensor) -> str:
        return self._quoted(token[None])[:18]

    def _ratio(self, distance: Tensor) -> str:
        return f"{float(distance) / self.table.typical_distance:>7.2f}"
