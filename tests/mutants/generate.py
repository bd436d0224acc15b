"""Plausible bugs of generation and evaluation: each was somebody's."""

from tests.mutants.mutant import Mutant

GENERATE = "tests/test_generate.py"
PERPLEXITY = "tests/evaluate/test_perplexity.py"
ROUGE = "tests/evaluate/test_generation.py"

MUTANTS = [
    Mutant(
        name="top_p_keeps_one_too_few", file="minift/sampling.py", test=GENERATE,
        old="above = probabilities.cumsum(-1) - probabilities ", new="above = probabilities.cumsum(-1) ",
    ),
    Mutant(
        name="penalty_rewards_negative_logits", file="minift/sampling.py", test=GENERATE,
        old="torch.where(logits < 0, logits * penalty, logits / penalty)", new="logits / penalty",
    ),
    Mutant(
        name="min_p_of_one_instead_of_the_likeliest", file="minift/sampling.py", test=GENERATE,
        old="logits < logits.amax(-1, keepdim=True) + math.log(p)", new="logits.log_softmax(-1) < math.log(p)",
    ),
    Mutant(
        name="rows_share_one_random_stream", file="minift/generate.py", test=GENERATE,
        old="[torch.Generator().manual_seed(seed) for seed in seeds]", new="[torch.Generator().manual_seed(seeds[0])] * len(seeds)",
    ),
    Mutant(
        name="pads_stay_in_the_cache", file="minift/generate.py", test=GENERATE,
        old="cache.lengths = cache.virtual + lengths ", new="assert lengths is not None ",
    ),
    Mutant(
        name="first_token_read_off_a_pad", file="minift/generate.py", test=GENERATE,
        old="hidden[torch.arange(len(place), device=device), lengths - 1]", new="hidden[:, -1]",
    ),
    Mutant(
        name="copies_in_the_order_of_the_distinct", file="minift/generate.py", test=GENERATE,
        old="which, device = [place[each] for each in asked]", new="which, device = sorted(place[each] for each in asked)",
    ),
    Mutant(
        name="one_prompt_two_sets_run_once", file="minift/generate.py", test="tests/peft/test_rows.py",
        old="[None] * len(prompts) if sets is None else sets))\n", new="[None] * len(prompts)))\n",
    ),
    Mutant(
        name="the_copy_forgets_the_lengths", file="minift/models/cache.py", test=GENERATE,
        old="other.lengths, other.capacity = self.lengths[rows], capacity", new="other.capacity = capacity",
    ),
    Mutant(
        name="even_rows_overwrite_their_last_token", file="minift/models/cache.py", test=GENERATE,
        old="self.values[layer][:, :, self.filled - new : self.filled] = values", new="self.values[layer][:, :, self.filled - new - (new == 1) : self.filled - (new == 1)] = values",
    ),
    Mutant(
        name="rows_are_even_if_two_are", file="minift/models/cache.py", test=GENERATE,
        old="longest + new, shortest == longest", new="longest + new, int(self.lengths[-1]) == longest",
    ),
    Mutant(
        name="a_lone_token_sees_beyond_its_window", file="minift/models/attention.py", test=GENERATE,
        old="(window is None or window >= slots):\n        return None", new="(alone or window is None or window >= slots):\n        return None",
    ),
    Mutant(
        name="a_lone_token_sees_the_first_key_alone", file="minift/models/attention.py", test=GENERATE,
        old="self.config.causal and q.shape[2] > 1", new="self.config.causal",
    ),
    Mutant(
        name="penalty_forgets_the_answer", file="minift/generate.py", test=GENERATE,
        old="seen.scatter_(1, chosen[:, None], True)", new="seen = seen",
    ),
    Mutant(
        name="stream_shows_part_of_a_stop_string", file="minift/tokenizer/answer.py", test=GENERATE,
        old="len(self.text) - max(held, default=0)", new="len(self.text)",
    ),
    Mutant(
        name="mean_of_batch_means", file="minift/evaluate/perplexity.py", test=PERPLEXITY,
        old="nats + loss_sum.item(), tokens + int(count)", new="nats + loss_sum.item() / int(count) * len(indices), tokens + len(indices)",
    ),
    Mutant(
        name="pads_and_prompts_scored", file="minift/evaluate/perplexity.py", test=PERPLEXITY,
        old="batch.token_ids, batch.loss_mask)", new="batch.token_ids, torch.ones_like(batch.loss_mask))",
    ),
    Mutant(
        name="overlap_of_windows_scored_twice", file="minift/evaluate/perplexity.py", test=PERPLEXITY,
        old="place >= max(new, 1)", new="place > start",
    ),
    Mutant(
        name="rouge_reports_recall", file="minift/evaluate/generation.py", test=ROUGE,
        old="return 2 * precision * recall / (precision + recall)", new="return recall",
    ),
    Mutant(
        name="int8_head_rounded_where_it_is_to_be_exact", file="minift/generate.py", test=GENERATE,
        old="in_int8 = not exact and any(", new="in_int8 = any(",
    ),
    Mutant(
        name="int8_prompt_read_as_if_nothing_were_to_be_exact", file="minift/generate.py", test=GENERATE,
        old="token_by_token(exact, prompt=True)", new="token_by_token(False, prompt=True)",
    ),
    Mutant(
        name="int8_head_reads_without_rounding", file="minift/generate.py", test=GENERATE,
        old="token_by_token(exact), answering():                         # never", new="answering():                         # never",
    ),
]
