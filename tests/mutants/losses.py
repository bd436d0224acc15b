"""Planted bugs in the losses that go through the head, and in their data."""

from tests.mutants.mutant import Mutant

FUSED, TEST = "minift/losses/fused.py", "tests/losses/test_fused.py"
LOGPROBS, ANSWERS = "minift/losses/logprobs.py", "tests/losses/test_logprobs.py"
BRANCHES, TREES = "minift/data/branches.py", "tests/data/test_branches.py"

MUTANTS = [
    Mutant("fused_loss_not_shifted", FUSED, "places = F.pad(counted, (0, 1))", "places = F.pad(counted, (1, 0))", TEST),
    Mutant("fused_loss_of_a_mean", FUSED, "-logprobs.sum()", "-logprobs.mean()", TEST),
    Mutant("logprobs_forget_what_came_from_above", LOGPROBS, "dhidden = None if dhidden is None else dhidden * above", "", TEST),
    Mutant("logprobs_keep_the_last_chunk_of_dw", LOGPROBS, "dhead.addmm_(dz.T, h) if", "dhead.copy_(dz.T @ h) if", TEST),
    Mutant("logprobs_without_the_token_in_the_gradient", LOGPROBS, "p.mul_(-slope[own]).scatter_add_(1, tokens[place, None], slope[own])", "p.mul_(-slope[own])", TEST),
    Mutant("logprobs_from_the_log_of_a_vanished_p", LOGPROBS, "logprobs[place] = log_p.gather(1, tokens[place, None])[:, 0]",
           "logprobs[place] = log_p.exp().gather(1, tokens[place, None])[:, 0].log()", TEST),
    Mutant("logprobs_in_bf16_shifted_by_another_rows_sum", LOGPROBS, "logits(place, own).sub_(shift[own])", "logits(place, own).sub_(shift[:1])", TEST),
    Mutant("logprobs_shift_by_a_token_that_cannot_be_drawn", LOGPROBS, "if support is None else z.argmax(1, keepdim=True)", "", ANSWERS),
    Mutant("logprobs_keep_the_first_tiles_gradient", LOGPROBS, "z_buffer[own] = dz", "z_buffer[: len(dz)] = dz", ANSWERS),
    Mutant("logprobs_ignore_autocast", LOGPROBS, "dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype",
           "dtype = hidden.dtype", TEST),
    Mutant("logprobs_make_dw_for_a_frozen_head", LOGPROBS, "if learn and ctx.needs_input_grad[1] else None", "if learn else None", TEST),
    Mutant("logprobs_gradient_without_the_temperature", LOGPROBS, "slope[own, None] / temperature", "slope[own, None]", ANSWERS),
    Mutant("logprobs_temperature_multiplies", LOGPROBS, "z.div_(temperature)", "z.mul_(temperature)", ANSWERS),
    Mutant("logprobs_of_tokens_that_could_not_be_drawn", LOGPROBS, "return z if support is None else", "return z if True else", ANSWERS),
    Mutant("logprobs_reuse_the_last_piece_of_a_large_group", LOGPROBS, "if len(pieces) > 1: ", "if False: ", ANSWERS),
    Mutant("logprobs_groups_torn_apart", LOGPROBS, "if end > start and end + size - start > rows:", "if end > start:", ANSWERS),
    Mutant("entropy_gradient_with_the_wrong_sign", LOGPROBS, "dz.sub_(from_entropy)", "dz.add_(from_entropy)", ANSWERS),
    Mutant("entropy_gradient_without_h", LOGPROBS, "torch.xlogy(p, p).addcmul_(p, spread[place, None])", "torch.xlogy(p, p)", ANSWERS),
    Mutant("support_bits_in_the_other_order", LOGPROBS, "bits = (packed[:, :, None] >> torch.arange(8,", "bits = (packed[:, :, None] >> torch.arange(7, -1, -1,", ANSWERS),
    Mutant("sum_of_the_wrong_answer", LOGPROBS, "index_add(0, owner, logprobs)", "index_add(0, owner.flip(0), logprobs)", ANSWERS),
    Mutant("first_token_of_a_second_answer_predicted_by_the_first_answer", BRANCHES, "[last, *range(row * T + at", "[row * T + at - 1, *range(row * T + at", TREES),
    Mutant("reward_read_before_the_end", BRANCHES, "ends=torch.tensor([place[-1] for place in found])", "ends=torch.tensor([place[-2] for place in found])", TREES),
    Mutant("an_answer_sees_the_others", "minift/models/attention.py", "own | (branches == 0)[:, None]", "own | True", TREES),
    Mutant("an_answer_does_not_see_its_prompt", "minift/models/attention.py", "own | (branches == 0)[:, None]", "own", TREES),
    Mutant("a_branch_goes_on_from_the_one_before", "minift/models/transformer.py", "before + place - _first_of_run(branches, place)",
           "place - first", TREES),
    Mutant("a_window_counts_other_answers", "minift/models/attention.py",
           "back = places[:, :, None] - torch.cat([key_slot[: slots - T].expand(len(places), -1), places], dim=1)[:, None]", "pass", TREES),
]
