"""Planted bugs in the losses of embeddings and in GradCache."""

from tests.mutants.mutant import Mutant

NCE, TEST_NCE = "minift/losses/contrastive.py", "tests/losses/test_contrastive.py"
METRIC, TEST_METRIC = "minift/losses/metric.py", "tests/losses/test_metric.py"
DISTANCE = "minift/losses/distance.py"
MINING, TEST_MINING = "minift/losses/mining.py", "tests/losses/test_mining.py"
SIMILARITY, TEST_SIMILARITY = "minift/losses/similarity.py", "tests/losses/test_similarity.py"
TEACHER, TEST_TEACHER = "minift/losses/embedding_distillation.py", "tests/losses/test_embedding_distillation.py"
DOLL, TEST_DOLL = "minift/losses/matryoshka.py", "tests/losses/test_matryoshka.py"
CACHE, TEST_CACHE = "minift/train/grad_cache.py", "tests/train/test_grad_cache.py"

MUTANTS = [
    Mutant("nce_a_mean_for_the_sum", NCE, 'own, reduction="sum")', 'own)', TEST_NCE),
    Mutant("nce_temperature_multiplied", NCE, "cosines(anchors, candidates) / temperature", "cosines(anchors, candidates) * temperature", TEST_NCE),
    Mutant("nce_without_its_hard_negatives", NCE, "else torch.cat([positives, negatives])  ", "else positives  ", TEST_NCE),
    Mutant("nce_negatives_before_positives", NCE, "else torch.cat([positives, negatives])  ", "else torch.cat([negatives, positives])  ", TEST_NCE),
    Mutant("nce_repeated_positives_pushed_away", NCE, "(candidate == positive) | (candidate == anchor)", "candidate == anchor", TEST_NCE),
    Mutant("nce_anchors_own_text_pushed_away", NCE, "(candidate == positive) | (candidate == anchor)", "candidate == positive", TEST_NCE),
    Mutant("nce_repeated_anchors_pushed_away", NCE, "    twins[:, :B] |= ids[0] == anchor\n", "", TEST_NCE),
    Mutant("nce_the_positive_masked_too", NCE, "twins.fill_diagonal_(False)", "twins", TEST_NCE),
    Mutant("nce_symmetric_one_way_twice", NCE, "logits[:, :B].T, twins", "logits[:, :B], twins", TEST_NCE),
    Mutant("nce_symmetric_not_halved", NCE, "+ back) / 2, B", "+ back), B", TEST_NCE),
    Mutant("nce_symmetric_twins_of_the_other_way", NCE, "twins[:, :B].T", "twins[:, :B]", TEST_NCE),
    Mutant("temperature_stuck_beyond_its_limit", NCE, "            self.log_scale.clamp_(max=self.limit)\n        return torch.exp(-self.log_scale)",
           "            pass\n        return torch.exp(-self.log_scale.clamp(max=self.limit))", TEST_NCE),
    Mutant("temperature_without_a_limit", NCE, "            self.log_scale.clamp_(max=self.limit)\n", "            pass\n", TEST_NCE),
    Mutant("temperature_upside_down", NCE, "torch.tensor(-math.log(start))", "torch.tensor(math.log(start))", TEST_NCE),
    Mutant("cosines_rounded_under_autocast", DISTANCE, "torch.autocast(u.device.type, enabled=False)", "torch.autocast(u.device.type)", TEST_METRIC),
    Mutant("distances_in_half_precision", DISTANCE, "return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x", "return x", TEST_METRIC),
    Mutant("euclidean_by_expanding_the_square", DISTANCE, "donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist", TEST_METRIC),
    Mutant("contrastive_labels_turned_round", METRIC, "torch.where(same, d, torch.relu(margin - d))", "torch.where(same, torch.relu(margin - d), d)", TEST_METRIC),
    Mutant("contrastive_has_no_floor", METRIC, "torch.where(same, d, torch.relu(margin - d))", "torch.where(same, d, margin - d)", TEST_METRIC),
    Mutant("contrastive_not_halved", METRIC, ".square() / 2", ".square()", TEST_METRIC),
    Mutant("online_contrastive_keeps_easy_pairs", METRIC, "together[together > nearest]", "together", TEST_METRIC),
    Mutant("online_contrastive_keeps_the_far_ones", METRIC, "apart[apart < furthest]", "apart[apart > furthest]", TEST_METRIC),
    Mutant("triplet_turned_round", METRIC, "rowwise(distance, anchors, positives) - rowwise(distance, anchors, negatives)",
           "rowwise(distance, anchors, negatives) - rowwise(distance, anchors, positives)", TEST_METRIC),
    Mutant("triplet_margin_taken_off", METRIC, "negatives) + margin)", "negatives) - margin)", TEST_METRIC),
    Mutant("batch_all_counts_easy_triplets", MINING, "int((losses > 0).sum())", "losses.numel()", TEST_MINING),
    Mutant("batch_hard_takes_the_nearest_mate", MINING, "d.masked_fill(~mates, -math.inf).max(1)", "d.masked_fill(~mates, math.inf).min(1)", TEST_MINING),
    Mutant("batch_hard_lonely_anchors_count", MINING, "return furthest[anchors] - nearest[anchors]",
           "return furthest.clamp(min=0) - d.masked_fill(labels[:, None] == labels, math.inf).min(1).values", TEST_MINING),
    Mutant("soft_margin_is_a_hard_one", MINING, "F.softplus(lag)", "torch.relu(lag)", TEST_MINING),
    Mutant("semi_hard_takes_the_hardest", MINING, "beyond = strangers[a] & (to_all > to_mate[:, None])", "beyond = strangers[a]", TEST_MINING),
    Mutant("semi_hard_without_a_negative_beyond_takes_the_nearest", MINING, "furthest = to_all.masked_fill(~strangers[a], -math.inf).max(1)",
           "furthest = to_all.masked_fill(~strangers[a], math.inf).min(1)", TEST_MINING),
    Mutant("an_embedding_is_its_own_mate", MINING, "same.clone().fill_diagonal_(False)", "same.clone()", TEST_MINING),
    Mutant("cosent_ranks_upside_down", SIMILARITY, "targets[:, None] < targets]", "targets[:, None] > targets]", TEST_SIMILARITY),
    Mutant("cosent_ranks_equal_targets", SIMILARITY, "targets[:, None] < targets]", "targets[:, None] <= targets]", TEST_SIMILARITY),
    Mutant("cosent_without_the_one", SIMILARITY, "torch.cat([lead.new_zeros(1), lead])", "lead", TEST_SIMILARITY),
    Mutant("angle_imaginary_part_turned_round", SIMILARITY, "(b * c - a * d)", "(a * d - b * c)", TEST_SIMILARITY),
    Mutant("angle_keeps_its_sign", SIMILARITY, "(real + imaginary).abs()", "(real + imaginary)", TEST_SIMILARITY),
    Mutant("nli_difference_keeps_its_sign", SIMILARITY, "torch.cat([u, v, (u - v).abs()], 1)", "torch.cat([u, v, u - v], 1)", TEST_SIMILARITY),
    Mutant("a_teacher_that_learns", TEACHER, "wide(teacher.detach())", "wide(teacher)", TEST_TEACHER),
    Mutant("to_teacher_sums_over_the_width", TEACHER, ".square().mean(1).sum(), len(student)", ".square().sum(1).sum(), len(student)", TEST_TEACHER),
    Mutant("margin_mse_counts_rows", TEACHER, "margins.numel()", "len(margins)", TEST_TEACHER),
    Mutant("margin_mse_turned_round", TEACHER, "(q * p).sum(1, keepdim=True) - (q[:, None] * n).sum(2)", "(q[:, None] * n).sum(2) - (q * p).sum(1, keepdim=True)", TEST_TEACHER),
    Mutant("matryoshka_keeps_the_old_length", DOLL, "unit(column[..., :dim])", "unit(column)[..., :dim]", TEST_DOLL),
    Mutant("matryoshka_takes_the_last_numbers", DOLL, "column[..., :dim]", "column[..., -dim:]", TEST_DOLL),
    Mutant("matryoshka_weights_forgotten", DOLL, "sum(weight * total *", "sum(total *", TEST_DOLL),
    Mutant("matryoshka_adds_sums_of_other_counts", DOLL, " * (count / max(n, 1))", "", TEST_DOLL),
    Mutant("grad_cache_other_dropout", CACHE, "        torch.set_rng_state(cpu)\n", "", TEST_CACHE),
    Mutant("grad_cache_one_state_for_all_mini_batches", CACHE, "states.append(_random_state())", "states.append(states[0] if states else _random_state())", TEST_CACHE),
    Mutant("grad_cache_last_mini_batch_only", CACHE, "zip(parts, states, leaf.grad.split(size)):", "[*zip(parts, states, leaf.grad.split(size))][-1:]:", TEST_CACHE),
    Mutant("grad_cache_uneven_mini_batch_dropped", CACHE, "range(0, len(rows), size)]", "range(0, len(rows) - size + 1, size)]", TEST_CACHE),
    Mutant("grad_cache_gradients_of_another_mini_batch", CACHE, "leaf.grad.split(size)", "leaf.grad.flip(0).split(size)", TEST_CACHE),
    Mutant("grad_cache_draws_on_after_the_replay", CACHE, "with torch.random.fork_rng(devices=range(len(gpus))):", "with contextlib.nullcontext():", TEST_CACHE),
    Mutant("grad_cache_keeps_the_graph", CACHE, "    with torch.no_grad():\n        for part in parts:", "    if True:\n        for part in parts:", TEST_CACHE),
    Mutant("grad_cache_second_pass_in_full_precision", CACHE, "with _replayed(state), mode(), torch", "with _replayed(state), torch", TEST_CACHE),
]
