"""Generate text from a prompt with a trained language model.

    paralab generate --checkpoint runs/alice --prompt "Alice"

The prompt is printed, and after it each token as it is drawn, up to the end of the text or to --tokens tokens.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from paralab.errors import ConfigError
from paralab.models.files import FORM, MOVED
from paralab.options.arguments import TOKENIZER_MOVED, Parser, add_checkpoint, letters, positive, share, whole

if TYPE_CHECKING:
    from paralab.data.tokenizer import Tokenizer

_LONGEST_LETTER = 4  # bytes of UTF-8, and so the most tokens that one is spread over


def main(argv: list[str]) -> int:
    """Print the prompt and what follows it, as it is drawn; on stderr, which checkpoint was read. Returns: 0.

    Raises: ConfigError for a checkpoint of another model; DataError for one that cannot be read.
    """
    options = _parse(argv)
    import torch

    from paralab.data.tokenizer import get_tokenizer
    from paralab.inference.restore import restore
    from paralab.models.configs import TextConfig
    from paralab.models.generation import Choice, generate

    trained = restore(options.checkpoint, model=options.model, tokenizer=options.tokenizer)
    work = trained.work
    config = work.model_config
    if not isinstance(config, TextConfig):
        raise ConfigError(
            f"{trained.path} is a {work.spec.name} model: paralab generate needs one of texts, as gpt2 is"
        )
    print(f"{work.spec.name} {work.size} from {trained.path}", file=sys.stderr)
    tokenizer = get_tokenizer(config.tokenizer)
    prompt = torch.from_numpy(tokenizer.encode([options.prompt])[0].astype("int64"))[None].to(trained.device)
    choice = Choice(greedy=options.greedy, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    generator = torch.Generator(trained.device).manual_seed(options.seed)
    drawn = generate(
        trained.model,
        prompt,
        seq_len=config.seq_len,
        tokens=options.tokens,
        choice=choice,
        generator=generator,
        known=tokenizer.vocab_size,
    )
    print(options.prompt, end="", flush=True)
    for text in pieces((int(token) for token in drawn), tokenizer):
        print(text, end="", flush=True)
    print()
    return 0


def pieces(ids: Iterable[int], tokenizer: "Tokenizer") -> Iterator[str]:
    """Yield the text of tokens as they come, up to the first end of text.

    A letter whose bytes are spread over tokens is held back until it is whole.
    """
    held: list[int] = []
    for token in ids:
        if token == tokenizer.end_of_text:
            break
        held.append(token)
        text = tokenizer.decode(held)
        if not text.endswith("\ufffd") or len(held) > _LONGEST_LETTER:
            yield text
            held = []
    if held:
        yield tokenizer.decode(held)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab generate", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--model", metavar=FORM, help=MOVED)
    parser.add_argument("--tokenizer", metavar="FILE", help=TOKENIZER_MOVED)
    parser.add_argument("--prompt", type=letters, required=True, metavar="TEXT", help="Text to continue")
    parser.add_argument(
        "--tokens", type=whole(1), default=100, metavar="N", help="Generate at most this many tokens (default: 100)"
    )
    parser.add_argument("--greedy", action="store_true", help="Always take the most likely token, instead of sampling")
    parser.add_argument(
        "--temperature",
        type=positive,
        default=1.0,
        metavar="X",
        help="Divide the logits by this: below 1 sharpens the distribution, above 1 flattens it (default: 1)",
    )
    parser.add_argument(
        "--top-k", type=whole(1), metavar="K", help="Sample only from the K most likely tokens (default: from all)"
    )
    parser.add_argument(
        "--top-p",
        type=share,
        metavar="P",
        help="Nucleus sampling: sample only from the fewest tokens whose probabilities add up to P (default: from all)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="Seed of the sampling (default: 0)")
    options = parser.parse_args(argv)
    if not options.prompt:
        raise ConfigError("--prompt is empty: give at least one letter to begin with")
    if options.greedy and (options.temperature != 1.0 or options.top_k or options.top_p):
        raise ConfigError("--greedy does not sample: leave --temperature, --top-k and --top-p out")
    return options
