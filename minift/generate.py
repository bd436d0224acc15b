"""Generation: run the model, pick the next token (sampling.py), append it, go on; with a KV cache each step costs one token.

    prompt (T tokens) -> hidden (T, C), cache -> logits (V) of the last token -> token -> hidden (1, C), cache -> logits -> ...

Ragged prompts are padded on the right, run through the model once (one that many rows answer, too), and each row goes on from its own
length: positions are never shifted (trap 10). Each row draws from its own random stream. So what a row writes depends on its prompt and its seed,
never on its batch mates. Finished rows leave the batch. Logits are sampled in float32, whatever the model's dtype.
An encoder-decoder (models/encoder_decoder.py) runs the prompt through its encoder, and the answer begins behind its start token: what is said here of a
prompt in the cache holds for that token, and the cache knows the prompt. Three ways in, one loop (`steps`): generate_ids (tokens to tokens), generate (texts to texts), stream (pieces of text as they come).
Proved in tests/test_generate.py; equal to transformers' greedy ids in tests/parity/test_generate.py.
Left out: beam search, speculative decoding, a cache that forgets what a sliding window no longer sees."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from minift.errors import InputError
from minift.losses.logprobs import pack_support
from minift.models.cache import KVCache
from minift.models.encoder_decoder import EncoderDecoder
from minift.models.linear import packed, without_gradients
from minift.models.transformer import Transformer
from minift.peft.attach import in_rows, rows as answered_by
from minift.quant.linear import Linear8bit, rounded, token_by_token
from minift.sampling import Sampling, adjust, choose, penalize, row_seeds
from minift.tokenizer import Tokenizer
from minift.tokenizer.answer import Answer as Answer


LEAVE = 7 / 8
"""Ended rows leave a batch together, as soon as at most this share of it is still running."""
LONG = 32
"""Tokens to be written from which on it pays to put the head's weight in order first."""


def position_limit(model: Transformer) -> int | float:
    """How many tokens of text a row can hold, virtual tokens taken off: learned positions end, rotary ones and ALiBi do not (though
    quality does)."""
    return model.config.max_positions - model.virtual_count() if model.config.position == "learned" else math.inf


def begins(model: Transformer | EncoderDecoder, prompt: Sequence[int]) -> Sequence[int]:
    """The tokens that the answer to a prompt is written behind: the prompt, or an encoder-decoder's start token."""
    return [model.config.start_token_id] if model.config.decoder_layers else prompt


@torch.no_grad()
def steps(
    model: Transformer | EncoderDecoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seeds: Sequence[int],
    eos_ids: frozenset[int],
    finished: set[int],
    sets: Sequence[str | None] | None = None,
    supports: Sequence[list[Tensor]] | None = None,
    exact: bool = False,
) -> Iterator[list[tuple[int, int]]]:
    """Run one batch of B prompts, yielding after each step the (row, token) of every row still running.

    A row ends with a token of `eos_ids` (which is yielded), when the caller adds it to `finished`, or when the model's learned
    positions are used up. sets: who answers each row (peft.rows). supports: of each row a list, which gets for every token it draws the
    tokens it could have drawn, as packed bits (losses/logprobs.py). exact: see generate_ids. The model is in eval mode while this runs."""
    rows, ended, dice = list(range(len(prompts))), set(), [torch.Generator().manual_seed(seed) for seed in seeds]
    seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool)                    # (B, V)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(begins(model, prompt))] = True
    device, was_training = model.norm.weight.device, model.training
    seen = seen.to(device)
    answering = lambda: _answering(model, None if sets is None else [sets[row] for row in rows])
    model.eval()
    try:
        limit = position_limit(model)
        with token_by_token(exact, prompt=True):
            cache, last = _read(model, prompts, sets, max_new_tokens)
        head = head_for(model, max_new_tokens, exact)
        for step in range(max_new_tokens):
            with without_gradients(), token_by_token(exact), answering():                         # never across a yield
                logits = head(last).float()                                                        # (B, V)
            if sampling.repetition_penalty != 1.0:
                logits = penalize(logits, seen, sampling.repetition_penalty)
            chosen = choose(logits, sampling, dice)                                                # (B,)
            if supports is not None:
                for row, bits in zip(rows, pack_support(adjust(logits, sampling) > float("-inf"))):
                    if row not in ended:
                        supports[row].append(bits)
            tokens = chosen.tolist()
            yield [(row, token) for row, token in zip(rows, tokens) if row not in ended]
            full = (cache.lengths - cache.virtual >= limit).tolist()
            ended |= {row for i, row in enumerate(rows) if tokens[i] in eos_ids or row in finished or full[i]}
            going = [i for i, row in enumerate(rows) if row not in ended]
            if not going or step == max_new_tokens - 1:
                return
            if len(going) <= LEAVE * len(rows) or any(full):                                       # moving the others up costs, too
                rows, dice = [rows[i] for i in going], [dice[i] for i in going]
                kept = torch.tensor(going, device=device)
                with without_gradients():                                                          # the cache was made in there
                    cache.keep_rows(kept)
                chosen, seen = chosen[kept], seen[kept]
            seen.scatter_(1, chosen[:, None], True)
            with without_gradients(), token_by_token(exact), answering():
                last = model.hidden(chosen[:, None], cache=cache)[:, -1]                           # (B, C)
    finally:
        model.train(was_training)


def head_for(model: Transformer | EncoderDecoder, new: int, exact: bool) -> Callable[[Tensor], Tensor]:
    """The model's head, to be read `new` times: in int8 as the linears are, if those are and may round; else, for many times, from a copy of its weight in another order."""
    with without_gradients():
        in_int8 = not exact and any(isinstance(module, Linear8bit) for module in model.modules())
        return in_int8 and rounded(model.head) or (packed(model.head) if new >= LONG else model.head)


def _read(model, prompts: Sequence[Sequence[int]], sets: Sequence[str | None] | None, new: int) -> tuple[KVCache, Tensor]:
    """A cache of B rows that holds the prompts and has room for `new` more tokens, and what the head reads of each one's last token (B, C).

    A prompt that several rows answer (with the same set) is run once, and what it left is copied to each of them."""
    asked = list(zip(map(tuple, prompts), [None] * len(prompts) if sets is None else sets))
    place = {each: i for i, each in enumerate(dict.fromkeys(asked))}                               # D distinct ones
    which, device = [place[each] for each in asked], model.norm.weight.device
    texts = [begins(model, prompt) for prompt, _ in place]
    lengths = torch.tensor([len(text) for text in texts])
    token_ids = torch.zeros(len(place), int(lengths.max()), dtype=torch.int64)                     # (D, T), pads on the right
    for row, text in enumerate(texts):
        token_ids[row, : len(text)] = torch.tensor(text)
    capacity = min(token_ids.shape[1] + new, position_limit(model))
    lengths, token_ids = lengths.to(device), token_ids.to(device)
    shared = len(place) < len(asked)
    with without_gradients(), _answering(model, None if sets is None else [name for _, name in place]):
        rows = [prompt for prompt, _ in place] if model.config.decoder_layers else len(place)
        cache = model.new_cache(rows, token_ids.shape[1] if shared else capacity)
        hidden = model.hidden(token_ids, cache=cache)                                              # (D, T, C)
    cache.lengths = cache.virtual + lengths                                                        # forget the pads
    last = hidden[torch.arange(len(place), device=device), lengths - 1]                            # (D, C): only these meet the head
    return (cache.copies(which, capacity + cache.virtual), last[which]) if shared else (cache, last)


def _answering(model: Transformer, sets: Sequence[str | None] | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if sets is None else answered_by(model, list(sets))


def generate_ids(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = Sampling(),
    *,
    max_new_tokens: int = 64,
    seed: int | Sequence[int] = 0,
    eos_ids: int | Sequence[int] | None = None,
    finish: Callable[[int, int], bool] | None = None,
    batch_size: int = 64,
    sets: Sequence[str | None] | None = None,
    supports: Sequence[list[Tensor]] | None = None,
    exact: bool = False,
) -> list[list[int]]:
    """The new tokens of each prompt; the last is an end token if the row ended by itself.

    eos_ids: one or several end tokens, () for none, None for the config's. seed: an int, or one per prompt (see row_seeds).
    finish(row, token) is told of each new token; True ends the row. batch_size bounds the rows that run together, of similar
    length. sets: the adapter set that answers each prompt (None: the base). supports: an empty list for each prompt, see `steps`. exact: int8 linears
    read what they read elsewhere, rounded no further (quant/whole_numbers.py): slower, and what a policy is scored by.
    Raises InputError for an empty prompt or a token id outside the vocabulary."""
    seeds, ends = _check(model, prompts, max_new_tokens, seed, eos_ids)
    if sets is not None and len(sets) != len(prompts):
        raise InputError(f"{len(sets)} sets for {len(prompts)} prompts: name one for each, None for the base")
    if sets is not None and model.config.decoder_layers:
        raise InputError("an encoder-decoder reads its prompts end to end in one row, which cannot be answered by several sets: peft.switch to one at a time")
    if sets is None and in_rows(model):
        raise InputError("generation sorts prompts and lets finished rows leave, so inside peft.rows it would mix the sets up: pass sets= instead")
    if model.config.rope_scaling is not None and model.config.rope_scaling.kind == "dynamic":
        batch_size = 1                                                           # its frequencies look at the longest row
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    new: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        some, finished = order[start : start + batch_size], set()
        mine, allowed = ([values[i] for i in some] if values is not None else None for values in (sets, supports))
        running = steps(model, [prompts[i] for i in some], sampling, max_new_tokens, [seeds[i] for i in some], ends, finished, mine, allowed, exact)
        with contextlib.closing(running):                                        # the mode comes back even if `finish` raises
            for row, token in itertools.chain.from_iterable(running):
                new[some[row]].append(token)
                if finish is not None and finish(some[row], token):
                    finished.add(row)
    return new


def _check(model, prompts, max_new_tokens: int, seed, eos_ids) -> tuple[list[int], frozenset[int]]:
    """Refuse what cannot run; returns one seed per prompt and the set of end tokens."""
    V, limit = model.config.vocab_size, position_limit(model)
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty: the first token needs one before it, such as the tokenizer's BOS")
        if min(prompt) < 0 or max(prompt) >= V:
            found = f"token ids {min(prompt)} to {max(prompt)}"
            raise InputError(f"prompt {number} has {found}, the model knows 0 to {V - 1}: is this its tokenizer?")
        if len(prompt) > limit:
            room = f"{model.config.max_positions} learned positions" + (f", room for {limit} behind virtual tokens" if model.virtual_count() else "")
            raise InputError(f"prompt {number} has {len(prompt)} tokens, but this model has {room}: shorten it")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: wanted 1 or more")
    seeds = row_seeds(seed, len(prompts)) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts: pass one int, or one for each prompt")
    eos_ids = model.config.eos_token_id if eos_ids is None else eos_ids
    return seeds, frozenset([eos_ids] if isinstance(eos_ids, int) else eos_ids or ())


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    eos_ids: int | Sequence[int] | None = None,
    batch_size: int = 64,
    sets: Sequence[str | None] | None = None,
) -> list[str]:
    """What the model writes after each prompt (the prompt is not repeated). See Sampling and generate_ids for the options.

    A prompt is a text, which gets the tokenizer's BOS, or token ids taken as they are (a rendered chat, say). An answer ends
    before any of the `stop` strings, at an end token (None: the config's and the tokenizer's), or at max_new_tokens."""
    if isinstance(prompts, str):
        raise InputError("prompts is a single string: pass a list of prompts, such as [prompt]")
    sampling, stops = Sampling(temperature, top_k, top_p, min_p, repetition_penalty), _stops(stop)
    ids, ends = [_prompt_ids(model, tokenizer, prompt) for prompt in prompts], end_ids(model, tokenizer, eos_ids)
    answers = [Answer(tokenizer, begins(model, prompt), stops) for prompt in ids]
    finish = lambda row, token: token not in ends and answers[row].add(token)
    generate_ids(model, ids, sampling, max_new_tokens=max_new_tokens, seed=seed, eos_ids=ends, finish=finish, batch_size=batch_size, sets=sets)
    return [answer.finish() for answer in answers]


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    eos_ids: int | Sequence[int] | None = None,
) -> Iterator[str]:
    """The text `generate` gives for this prompt, in pieces as they come: none holds half a character or part of a stop string."""
    sampling, answer_stop = Sampling(temperature, top_k, top_p, min_p, repetition_penalty), _stops(stop)
    ids = _prompt_ids(model, tokenizer, prompt)
    seeds, ends = _check(model, [ids], max_new_tokens, seed, end_ids(model, tokenizer, eos_ids))
    return _pieces(steps(model, [ids], sampling, max_new_tokens, seeds, ends, set()), Answer(tokenizer, begins(model, ids), answer_stop), ends)


def _pieces(running: Iterator[list[tuple[int, int]]], answer: Answer, ends: frozenset[int]) -> Iterator[str]:
    shown = 0
    with contextlib.closing(running):
        for ((_, token),) in running:
            if token in ends or answer.add(token):
                break
            if answer.safe() > shown:
                yield answer.text[shown : answer.safe()]
                shown = answer.safe()
    if len(answer.finish()) > shown:
        yield answer.text[shown:]


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise InputError("a stop string is empty: every text contains it, so nothing could be written")
    return stops


def _prompt_ids(model, tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    if not isinstance(prompt, str):
        return list(prompt)
    ids = tokenizer.encode(prompt)
    pair = model.config.decoder_layers > 0                                     # whose prompt is a text of its own, and ends
    if tokenizer.adds_eos and not pair and ids and ids[-1] == tokenizer.eos_id:                    # an answer is to follow: the text does not end here
        ids = ids[:-1]
    if not ids and tokenizer.bos_id is None:
        raise InputError("the prompt is empty and this tokenizer has no BOS token to start from: give a prompt of at least one token")
    return ids or [tokenizer.bos_id]


def end_ids(model: Transformer, tokenizer: Tokenizer, eos_ids: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """The tokens that end an answer: those given, else the config's and the tokenizer's."""
    if eos_ids is not None:
        return (eos_ids,) if isinstance(eos_ids, int) else tuple(eos_ids)
    config = model.config.eos_token_id
    return tuple(({config} if isinstance(config, int) else set(config or ())) | tokenizer.end_ids)
