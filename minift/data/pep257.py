"""Is this a well-formed docstring summary? A judge that cannot be argued with: PEP 257's rules for the summary line.

One line, at most 72 characters, starting with a capital, ending in a full stop, and in the imperative mood ("Return the sum.",
not "Returns the sum." and not "The sum."). Being exact and free, it scores generations and later serves as a true reward.
The mood is judged by the first word: it must be in a list of verbs that functions are commonly described by.
Proved in tests/data/test_pep257.py. Left out: part-of-speech tagging; a rare verb counts as a miss."""

VERBS = frozenset(
    """abort accept access acquire activate adapt add adjust advance aggregate align allocate allow analyze annotate append apply approximate
    arrange ascertain assemble assert assign associate attach attempt average await backup balance batch begin bind block blow bound break
    broadcast buffer build cache calculate call cancel canonicalize capitalize capture cast center change check choose clamp clean cleanup
    clear clip clone close coerce collapse collect combine commit compare compile complete compose compress compute concatenate configure
    confirm connect consider construct consume contain contract control convert convolve copy count cover create cut deactivate debug decide
    declare decode decompose decompress decorate decrement decrypt dedent deduce define delegate delete deny derive describe deserialize
    destroy detach detect determine diff differentiate disable disassemble discard disconnect dispatch display distribute divide do double
    download downcast drain draw drop dump duplicate edit eliminate emit emulate enable encode encrypt end enforce ensure enter enumerate
    erase escape establish estimate evaluate examine exchange execute exit expand expect explain export expose extend extract factor fail
    feed fetch fill filter finalize find finish fit fix flatten flip flush fold follow force fork format forward free freeze fuse gather
    generate get give group guess handle hash help hide hold identify ignore implement import include increment indent index indicate infer
    inform initialize inject insert inspect install instantiate instruct integrate interpolate interpret intersect introduce invert invoke
    issue iterate join keep kill launch lay lex limit link list listen load localize locate lock log look lookup lower maintain make manage
    map mark mask match materialize measure merge mirror mock modify monitor move multiply name negate normalize note notify obtain offer
    open optimize order output overlay overload override overwrite pack pad parse partition pass patch peek perform permute pick pickle place plot
    point poll pop populate position post predict prepare prepend preprocess prevent print process produce project prompt propagate provide
    prune publish pull purge push put quantize query queue quit quote raise randomize read rearrange rebuild recalculate receive recognize
    recompute record recover recurse redirect reduce refer refine refresh register reject release reload remap remove rename render reorder
    repeat replace replicate report represent request require rescale reserve reset reshape resize resolve restart restore restrict resume
    retrieve retry return reverse revert rewind rewrite roll rotate round route run sample save scale scan scatter schedule score search
    seek select send separate serialize serve set setup shape share shift show shuffle shut shutdown simplify simulate skip sleep slice solve
    sort specify split squeeze stack start stop store stream strip subclass submit subscribe substitute subtract suggest sum supply suppress
    suspend swap switch synchronize take tell terminate test throw tokenize toggle trace track train transform translate transpose trap
    traverse treat trigger trim truncate try turn undo unfold uninstall union unite unload unlock unpack unpickle unquote unregister unset unwrap
    update upgrade upload use validate verify view visit wait walk warn wrap write yield zero zip""".split()
)


def is_pep257(summary: str) -> bool:
    """Whether `summary` keeps all five rules."""
    words = summary.split()
    one_line = "\n" not in summary.strip() and 0 < len(summary.strip()) <= 72
    return one_line and len(words) > 1 and summary.strip().endswith(".") and words[0][0].isupper() and words[0].lower() in VERBS
