"""Planted bugs in the losses."""

from tests.mutants.mutant import Mutant

FUSED, TEST = "minift/losses/fused.py", "tests/losses/test_fused.py"

MUTANTS = [
    Mutant("fused_loss_not_shifted", FUSED, "places = F.pad(counted, (0, 1))", "places = F.pad(counted, (1, 0))", TEST),
    Mutant("fused_loss_forgets_what_came_from_above", FUSED, "(dhidden * above).view(ctx.shape)", "dhidden.view(ctx.shape)", TEST),
    Mutant("fused_loss_keeps_the_last_chunk_of_dw", FUSED, "dhead.addmm_(dz.T, h) if", "dhead.copy_(dz.T @ h) if", TEST),
    Mutant("fused_loss_without_the_target_in_the_gradient", FUSED, "torch.full_like(aim, -1.0)", "torch.zeros_like(aim)", TEST),
    Mutant("fused_loss_from_the_log_of_a_vanished_p", FUSED, "nats.append(top - p.amax(1, keepdim=True).log() - aim)",
           "nats.append(-p.gather(1, target).log())", TEST),
    Mutant("fused_loss_of_a_mean", FUSED, "return torch.cat(nats).sum() if nats", "return torch.cat(nats).mean() if nats", TEST),
    Mutant("fused_loss_ignores_autocast", FUSED, "dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype",
           "dtype = hidden.dtype", TEST),
    Mutant("fused_loss_makes_dw_for_a_frozen_head", FUSED, "if learn and ctx.needs_input_grad[1] else None", "if learn else None", TEST),
]
