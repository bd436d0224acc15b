"""Planted bugs in bottleneck adapters, AdapterFusion, LoReFT and their folders; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

BOTTLENECK, FUSION, REFT = "minift/peft/bottleneck.py", "minift/peft/fusion.py", "minift/peft/reft.py"
FOLDERS, PLACES, WRAPPER, ATTACH = "minift/peft/adapter_folders.py", "minift/peft/places.py", "minift/peft/wrapper.py", "minift/peft/attach.py"
TEST = {BOTTLENECK: "tests/peft/test_bottleneck.py", FUSION: "tests/peft/test_fusion.py", REFT: "tests/peft/test_reft.py",
        FOLDERS: "tests/peft/test_adapter_folders.py"}  # fmt: skip


def mutant(name: str, file: str, old: str, new: str, test: str | None = None) -> Mutant:
    return Mutant(name=name, file=file, old=old, new=new, test=test or TEST[file])


MUTANTS = [
    mutant("bottleneck_residual_forgotten", BOTTLENECK, "return z + change(z) if isinstance(z, Tensor)", "return change(z) if isinstance(z, Tensor)"),
    mutant("bottleneck_scale_forgotten", BOTTLENECK, "self.scale * F.linear(low,", "F.linear(low,"),
    mutant("bottleneck_up_not_zero_at_start", BOTTLENECK, "# U stays zero", "; nn.init.normal_(self.U, std=0.02)"),
    mutant("bottleneck_activation_after_up", BOTTLENECK, "low = self.act(F.linear(h,", "low = (F.linear(h,"),
    mutant("bottleneck_width_rounded_up", BOTTLENECK, "max(1, int(C // config.reduction_factor))", "max(1, math.ceil(C / config.reduction_factor))"),
    mutant("bottleneck_in_the_bases_dtype", BOTTLENECK, "torch.zeros(shape, **new_like(like))", "torch.zeros(shape, dtype=like.weight.dtype)"),
    mutant(
        "houlsby_attention_adapter_missing", BOTTLENECK,
        "            places.attention: Bottleneck(self, after, C, linear, places.attention_key),\n", "",
    ),
    mutant("pfeiffer_before_the_residual", BOTTLENECK, "(places.block, after) if places.last_norm", "(places.mlp, after) if places.last_norm"),
    mutant("pfeiffer_reads_before_the_norm", BOTTLENECK, "base(y + change(base(y)))", "base(y + change(y))"),
    mutant(
        "parallel_reads_the_mlps_inside", BOTTLENECK,
        "return base(h) + change(x)\n\n    def merged", "return base(h) + change(base(h))\n\n    def merged",
    ),
    mutant(
        "parallel_adapter_reads_the_normed_stream", BOTTLENECK,
        "        self.x = x\n        return base(x)", "        self.x = base(x)\n        return base(x)",
    ),
    mutant(
        "a_parallel_blocks_tap_misses_the_shared_norm", PLACES,
        '"norm1" if module.norm2 is None else "norm2"', '"mlp" if module.norm2 is None else "norm2"', TEST[BOTTLENECK],
    ),
    mutant(
        "fusion_scores_divided_by_the_root", FUSION,
        "p = (keys @ query.to(keys.dtype)[..., None])", "p = (keys @ query.to(keys.dtype)[..., None] / len(self.V) ** 0.5)",
    ),
    mutant("fusion_softmax_over_features", FUSION, ".softmax(dim=-2)", ".softmax(dim=-1)"),
    mutant("fusion_penalty_pulls_v_to_zero", FUSION, "(self.V - torch.eye(len(self.V), device=self.V.device, dtype=self.V.dtype))", "self.V"),
    mutant("fusion_trains_its_adapters_too", FUSION, "        self.parts = parts  ", "        self.parts = nn.ModuleList(parts)  "),
    mutant("fusion_value_starts_at_zero", FUSION, "nn.Parameter(torch.eye(C, **options))", "nn.Parameter(torch.zeros(C, C, **options))"),
    mutant("fusion_loses_a_set_that_is_removed", ATTACH, "    if users:\n", "    if users and False:\n", TEST[FUSION]),
    mutant("reft_edits_every_position", REFT, "chosen = (place >= 0) & (place < self.prefix)", "chosen = place >= 0"),
    mutant("reft_counts_virtual_tokens", REFT, "return value.positions - value.virtual", "return value.positions"),
    mutant(
        "reft_counts_from_the_start_of_the_row", REFT,
        "        if isinstance(value, Context):", "        if isinstance(value, Context) and False:",
    ),
    mutant("reft_forgets_to_subtract_r_h", REFT, "(self.W - R).to(h.dtype)", "self.W.to(h.dtype)"),
    mutant("reft_rows_not_orthonormal", REFT, "2 / V.square().sum(dim=0)", "1 / V.square().sum(dim=0)"),
    mutant("reft_rows_get_anothers_positions", WRAPPER, "positions=value.positions[rows]", "positions=value.positions[: len(rows)]", TEST[REFT]),
    mutant(
        "library_folder_keeps_the_sets_name", FOLDERS,
        'key.replace(f".adapters.{name}.", ".adapters.NAME.")', 'key.replace(".adapters.sst.", ".adapters.NAME.")',
    ),
    mutant("library_folders_unknown_option_ignored", FOLDERS, "    if unknown:", "    if unknown and False:"),
    mutant("library_folder_of_another_family_is_taken", FOLDERS, "own is not None and found != own", "own is not None and False"),
    mutant("library_folders_head_is_not_compared", FOLDERS, "or not torch.equal(own[key]", "or False and not torch.equal(own[key]"),
    mutant("library_reft_signs_forgotten", FOLDERS, '"reft_W": signs[:, None] * W', '"reft_W": W'),
    mutant("library_reft_diagonal_signs_forgotten", FOLDERS, ".T * original.diagonal())", ".T)"),
    mutant(
        "library_arrangement_confused", BOTTLENECK,
        '"original_ln_before": True, "is_parallel": False', '"original_ln_before": False, "is_parallel": False', TEST[FOLDERS],
    ),
    mutant(
        "library_width_written_as_the_default_factor", BOTTLENECK,
        "if self.width is None else factor(len(one.u), self.width)}", "}", TEST[FOLDERS],
    ),
]
