"""Bugs in what is computed by hand for speed: norms, gates, LoRA's linear, AdamW's step, what is made again, and which memory is kept."""

from tests.mutants.mutant import Mutant

NORM, MLP, REMADE, RANK = "minift/models/norm.py", "minift/models/mlp.py", "minift/models/remade.py", "minift/peft/low_rank.py"
ADAMW, MEMORY, LOOP, BLOCK = "minift/train/adamw.py", "minift/train/memory.py", "minift/train/loop.py", "minift/models/block.py"
T_NORM, T_MLP, T_REMADE, T_RANK = "tests/models/test_norm.py", "tests/models/test_mlp.py", "tests/models/test_remade.py", "tests/peft/test_low_rank.py"
T_OPTIM, T_MEMORY, T_KINDS = "tests/train/test_optim.py", "tests/train/test_memory.py", "tests/train/test_memory_kinds.py"

MUTANTS = [
    Mutant("rms_of_the_sum_not_the_mean", NORM, ".square_().div_(len(w)).add_(eps)", ".square_().add_(eps)", T_NORM),
    Mutant("rms_without_eps", NORM, ".div_(len(w)).add_(eps).rsqrt_()", ".div_(len(w)).rsqrt_()", T_NORM),
    Mutant("rms_gradient_forgets_that_r_is_of_x", NORM, ".mul_(r).addcmul_(flat, towards).view", ".mul_(r).view", T_NORM),
    Mutant("rms_gradient_squared_for_cubed", NORM, "r.pow(3)", "r.pow(2)", T_NORM),
    Mutant("rms_gradient_pushed_the_other_way", NORM, ".div_(-len(w))                        #", ".div_(len(w))                        #", T_NORM),
    Mutant("gain_gradient_of_x_not_of_x_r", NORM, "dw = both.T @ r[:, 0]", "dw = both.sum(0)", T_NORM),
    Mutant("norm_made_again_of_the_weights_of_then", NORM, "return lambda w=norm.weight: scaled(x, w, norm.eps)[0]", "return lambda: scaled(x, norm.weight, norm.eps)[0]", T_NORM),
    Mutant("layernorm_made_again_without_its_bias", NORM, "norm.normalized_shape, w, b, norm.eps)\n    return None", "norm.normalized_shape, w, None, norm.eps)\n    return None", T_NORM),
    Mutant("half_precision_norms_by_hand", NORM, "x.is_cpu and x.dtype == self.weight.dtype and torch", "x.is_cpu and torch", T_NORM),
    Mutant("swiglu_gradient_of_up_for_gate", MLP, "silu_backward(dh * up, gate)", "silu_backward(dh, gate)", T_MLP),
    Mutant("swiglu_gradient_of_the_wrong_side", MLP, "F.silu(gate).mul_(dh)", "F.silu(up).mul_(dh)", T_MLP),
    Mutant("every_gate_is_silus", MLP, "by_hand = self.act is F.silu and", "by_hand =", T_MLP),
    Mutant("what_the_gate_made_is_kept", MLP, "        with remade(h, lambda: self.gated(gate, up)):\n            return self.down(h)", "        return self.down(h)", T_MLP),
    Mutant("a_norms_output_is_kept", NORM, "make is None or y.dtype != x.dtype else remade(y, make)", "True else remade(y, make)", T_NORM),
    Mutant("whoever_saves_anything_gets_y", REMADE, "if saved.untyped_storage().data_ptr() != memory or saved.dtype != dtype:", "if saved.dtype != dtype:", T_REMADE),
    Mutant("views_lose_their_shape", REMADE, ".as_strided(*place)", "", T_REMADE),
    Mutant("made_anew_for_each_reader", REMADE, "        if self.left == 0:\n", "        if True:\n", T_REMADE),
    Mutant("what_was_made_stays", REMADE, "        if self.left == 0:\n            self.made = None\n", "", T_REMADE),
    Mutant("made_with_a_graph_of_its_own", REMADE, "            with torch.no_grad():\n                self.made", "            with torch.enable_grad():\n                self.made", T_REMADE),
    Mutant("y_lives_in_its_own_hook", REMADE, "saved.dtype != dtype:", "saved.dtype != y.dtype:", T_REMADE),
    Mutant("checkpointing_keeps_what_it_would_recompute", REMADE, "return innermost is not None and innermost[1] is not _unpack", "return False", T_REMADE),
    Mutant("nothing_is_remade_inside_another", REMADE, "innermost is not None and innermost[1] is not _unpack", "innermost is not None", T_REMADE),
    Mutant("low_rank_scale_forgotten_forwards", RANK, "y.addmm_(low, B.to(dtype).T, alpha=scale)", "y.addmm_(low, B.to(dtype).T)", T_RANK),
    Mutant("low_rank_scale_forgotten_backwards", RANK, "(dy @ B.to(dtype)).mul_(ctx.scale)", "(dy @ B.to(dtype))", T_RANK),
    Mutant("low_rank_b_learns_unscaled", RANK, "(low.T @ dy).mul_(ctx.scale).T", "(low.T @ dy).T", T_RANK),
    Mutant("low_rank_stops_the_gradient_behind_it", RANK, "torch.mm(dy, W.to(dtype)).addmm_(dlow, A.to(dtype))", "torch.mm(dy, W.to(dtype))", T_RANK),
    Mutant("low_rank_bias_lost", RANK, "None if b is None else b.to(dtype))", "None)", T_RANK),
    Mutant("low_rank_past_the_hooks", RANK, " or base._forward_hooks or base._forward_pre_hooks:", ":", T_RANK),
    Mutant("low_rank_over_a_weight_that_learns", RANK, "if base.weight.requires_grad or (base.bias", "if (base.bias", T_RANK),
    Mutant("low_rank_in_float32_under_autocast", RANK, "dtype = torch.get_autocast_dtype(\"cpu\") if rounded else x.dtype", "dtype = x.dtype", T_RANK),
    Mutant("lora_drops_nothing_out", "minift/peft/lora.py", "(self.dropout and self.training) and (y := together(", "False and (y := together(", T_RANK),
    Mutant("adamw_counts_no_steps", ADAMW, "                torch._foreach_add_(t, 1)\n", "", T_OPTIM),
    Mutant("adamw_one_dtype_for_all", ADAMW, "alike.setdefault((w.device, w.dtype), [])", "alike.setdefault(w.device, [])", T_OPTIM),
    Mutant("adamw_rates_swapped", ADAMW, "(beta1, beta2), options = group[\"betas\"],", "(beta2, beta1), options = group[\"betas\"],", T_OPTIM),
    Mutant("adamw_eps_of_torchs_default", ADAMW, "(\"lr\", \"weight_decay\", \"eps\")", "(\"lr\", \"weight_decay\")", T_OPTIM),
    Mutant("adding_weights_wakes_the_compiler", ADAMW, "    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)\n", "", T_OPTIM),
    Mutant("zeroing_wakes_the_compiler", ADAMW, "    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)\n", "", T_OPTIM),
    Mutant("resuming_wakes_the_compiler", ADAMW, "    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)\n", "", T_OPTIM),
    Mutant("freed_memory_is_not_kept", MEMORY, "bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST))", "True", T_MEMORY),
    Mutant("holes_are_never_looked_for", MEMORY, "        give_back()\n        self.usual", "        self.usual", T_MEMORY),
    Mutant("holes_are_looked_for_at_every_step", MEMORY, "        self.usual, self.learning = 0, LEARN\n        return True", "        return True", T_MEMORY),
    Mutant("a_growing_process_is_usual", MEMORY, "        if held <= GROWN * self.usual:\n", "        self.usual = max(self.usual, held)\n        if held <= GROWN * self.usual:\n", T_MEMORY),
    Mutant("kinds_count_the_gate_twice", "minift/train/memory_kinds.py", "a * c.mlp_size * (2 + c.gated", "a * c.mlp_size * (4 + c.gated", T_KINDS),
    Mutant("kinds_forget_what_checkpointing_keeps", "minift/train/memory_kinds.py", "2 * w * C if (whole or c.norm_offset)", "0 if (whole or c.norm_offset)", T_KINDS),
]
