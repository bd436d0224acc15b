"""What a model says of answers, against a loop over tokens that runs every prompt with its answer alone and looks at all its logits.

float64 models agree to 1e-9 in what they say; in their gradients, of size 1, to 1e-6: positions turn q and k in float32 (eps 6e-8), the same
way forward but added up in another order backward. With a quantized head all products are float32: 1e-4 and 1e-3."""

import pytest
import torch
from torch.nn import functional as F

from minift import peft
from minift.data.branches import Tree, rows_of
from minift.losses.logprobs import per_answer
from minift.peft.wrapper import plain_weight
from minift.quant import quantize_model
from minift.train.answers import logprobs_of_answers, loss_of_answers, loss_of_stream
from tests.models.small import model, tokens

END = 2
TREES = [
    Tree([1, 7, 9, 11], [[5, 6, END], [8, END]]),
    Tree([1], [[4, 4, 12, 3, END], [END]]),                                      # a prompt of one token; an answer that only ends
    Tree([1, 3, END, 5, 30, 21, 17], [[10, 11], [12, 13, 14, 15, END]]),         # an end inside the prompt; an answer that was cut
]
LENGTHS = [3, 2, 5, 1, 2, 5]


def adapted(kind):
    """The model with a plain head, an adapter on its body, one on its head, both rounded to 4 bits, or a head trained by itself."""
    decoder = model("llama").double()
    if kind in ("nf4", "int8"):
        decoder = model("llama").float()
        quantize_model(decoder, kind, skip=())                                   # the head too
        return decoder
    targets = {"lora": ["q_proj", "down_proj"], "lora on the head": ["lm_head", "v_proj"]}.get(kind)
    if targets:
        peft.attach(decoder, peft.LoRA(rank=2, alpha=3, targets=targets))
    if kind == "own head":
        peft.attach(decoder, peft.Head())
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad and kind != "plain":
            parameter.data = parameter.data.double() + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    return decoder


KINDS = ["plain", "lora", "lora on the head", "own head", "nf4", "int8"]


def tolerance(kind):
    return 1e-4 if kind in ("nf4", "int8") else 1e-9


def token_by_token(decoder, trees):
    """The definition: of each answer token, log softmax of the logits at the place before it."""
    found = []
    for tree in trees:
        for answer in tree.answers:
            logits = decoder(torch.tensor([tree.prompt + answer]))[0]            # (T, V)
            for i, token in enumerate(answer):
                place = len(tree.prompt) + i
                found.append(logits[place - 1].log_softmax(-1)[token])
    return torch.stack(found)                                                    # (n,)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_trap17_log_probabilities_are_those_of_a_loop_over_tokens(kind, share):
    decoder, batch = adapted(kind), rows_of(TREES, share)
    assert (plain_weight(decoder.head) is None) == (kind in ("lora on the head", "nf4", "int8"))
    with torch.no_grad():
        expected = token_by_token(decoder, TREES)
    ours = logprobs_of_answers(decoder, batch)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance(kind))
    sums = torch.stack([part.sum() for part in expected.split(LENGTHS)])
    torch.testing.assert_close(per_answer(ours, batch.lengths), sums, rtol=0, atol=5 * tolerance(kind))


def test_trap17_the_first_and_the_last_token_of_an_answer_count_and_the_prompts_never():
    batch = rows_of(TREES)
    assert batch.lengths.tolist() == LENGTHS
    assert batch.tokens.tolist() == [token for tree in TREES for answer in tree.answers for token in answer]
    firsts = [0, 3, 5, 10, 11, 13]                                               # of the six answers, in the flat (n,)
    assert batch.tokens[firsts].tolist() == [5, 8, 4, END, 10, 12]
    read = batch.token_ids.flatten()[batch.places]                               # the token at which each one is predicted
    assert read[firsts].tolist() == [11, 11, 1, 1, 17, 17]                       # both answers' first at the prompt's last token
    assert read.tolist() == [11, 5, 6, 11, 8, 1, 4, 4, 12, 3, 1, 17, 10, 17, 12, 13, 14, 15]


def test_trap17_a_prompts_tokens_matter_as_context_and_have_no_term_of_their_own():
    decoder = adapted("plain")
    weight = decoder.head.weight.clone()
    others = [token for token in range(31) if token not in {t for tree in TREES for answer in tree.answers for t in answer}]
    grads = []
    for trees in (TREES, [Tree(tree.prompt[:-1] + [25], tree.answers) for tree in TREES]):
        scored = loss_of_answers(decoder, rows_of(trees), LENGTHS, lambda logprobs, entropy, part: -logprobs.sum())
        grads.append((scored.logprobs, torch.autograd.grad(scored.loss, decoder.head.weight)[0]))
    assert (grads[0][0] - grads[1][0]).abs().max() > 0.1                         # the prompt was read
    stream = decoder.hidden(rows_of(TREES).token_ids, segments=rows_of(TREES).segments, branches=rows_of(TREES).branches).flatten(0, 1)
    p = F.softmax(stream[rows_of(TREES).places] @ weight.T, -1)                  # a token that is no answer's only loses what p says
    torch.testing.assert_close(grads[0][1][others], (p.T @ stream[rows_of(TREES).places])[others], rtol=0, atol=1e-9)


def pairs_loss(batch):
    """DPO's form with a mean in it, so that a wrong length shows; called with any whole pairs."""
    ends = batch.lengths.view(-1, 2).sum(1).cumsum(0).tolist()
    starts = [0, *ends]

    def loss(logprobs, entropy, part):
        first, last = starts.index(part.start), starts.index(part.stop)
        lengths = batch.lengths[2 * first : 2 * last]
        sums = per_answer(logprobs, lengths)
        return -F.logsigmoid(0.3 * (sums[0::2] - sums[1::2] / lengths[1::2])).sum()

    return loss


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", ["plain", "lora", "lora on the head", "own head", "nf4"])
def test_a_loss_of_answers_and_its_gradient_are_those_through_all_logits(kind, share):
    decoder, batch = adapted(kind), rows_of(TREES, share)
    if kind == "nf4":
        peft.attach(decoder, peft.LoRA(rank=2, targets=["q_proj", "lm_head"]))
        for name, parameter in decoder.named_parameters():
            if name.endswith(".B"):
                parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
    pairs = batch.lengths.view(-1, 2).sum(1)
    scored = loss_of_answers(decoder, batch, pairs, pairs_loss(batch))
    expected = pairs_loss(batch)(token_by_token(decoder, TREES), None, slice(0, sum(LENGTHS)))
    bound = 1e-3 if kind == "nf4" else 1e-9
    torch.testing.assert_close(scored.loss, expected, rtol=0, atol=bound)
    ours, theirs = torch.autograd.grad(scored.loss, trained), torch.autograd.grad(expected, trained)
    assert len(ours) == len(trained) and any(gradient.abs().max() > 0.01 for gradient in theirs)
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our, their, rtol=0, atol=max(bound, 1e-6))


@pytest.mark.parametrize("kind", ["plain", "lora on the head"])
def test_temperature_and_entropy_come_with_and_without_a_head_that_has_to_be_called(kind):
    decoder, batch = adapted(kind), rows_of(TREES)
    scored = loss_of_answers(decoder, batch, LENGTHS, lambda logprobs, entropy, part: entropy.sum(), temperature=0.7, entropy=True)
    stream = decoder.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches)
    log_p = (decoder.head(stream).flatten(0, 1)[batch.places] / 0.7).log_softmax(-1)
    torch.testing.assert_close(scored.entropy, -(log_p.exp() * log_p).sum(-1).detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(scored.logprobs, log_p.gather(1, batch.tokens[:, None])[:, 0].detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(scored.loss, scored.entropy.sum(), rtol=0, atol=1e-9)


def test_a_stream_that_was_made_already_gives_the_same():
    decoder, batch = adapted("lora"), rows_of(TREES)
    loss = lambda logprobs, entropy, part: logprobs.square().sum()
    stream = decoder.hidden(batch.token_ids, segments=batch.segments, branches=batch.branches).flatten(0, 1)
    ours, theirs = loss_of_stream(decoder.head, stream, batch, LENGTHS, loss), loss_of_answers(decoder, batch, LENGTHS, loss)
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.logprobs, theirs.logprobs)


def test_answers_of_one_row_and_of_many_rows_say_the_same():
    decoder = adapted("plain")
    many = [Tree(tokens(n, seed=n).tolist(), [tokens(m, seed=9 * m).tolist() for m in (n % 4 + 1, 3)]) for n in (2, 9, 5, 1, 13)]
    together = logprobs_of_answers(decoder, rows_of(many)).split([sum(map(len, tree.answers)) for tree in many])
    for tree, part in zip(many, together):
        torch.testing.assert_close(part, logprobs_of_answers(decoder, rows_of([tree])), rtol=0, atol=1e-9)
