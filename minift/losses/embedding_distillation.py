"""A small model that learns from a large one's embeddings, or from its scores.

    to_teacher   mean over C of (u - t)^2                              u, t: (B, C) the student's and the teacher's embedding of a text
    margin_mse   (q . p - q . n - m)^2                                 m: the teacher's score of (q, p) less that of (q, n)

to_teacher needs no labels, and fits texts in other languages or a model with fewer layers to the same space. margin_mse takes a teacher that
reads question and passage together and has no embeddings; its scores have another scale and offset, so only their differences are copied.
The teacher's numbers are constants here. Returns (sum, count): of the texts; of the B K differences. Sources: Reimers & Gurevych 2020,
arXiv:2004.09813; Hofstätter et al. 2020, arXiv:2010.02666. Proved in tests/losses/test_embedding_distillation.py, against
sentence-transformers in tests/parity/test_sentence_transformers_losses.py."""

from torch import Tensor

from minift.losses.distance import alike, wide


def to_teacher(student: Tensor, teacher: Tensor) -> tuple[Tensor, int]:
    """Both (B, C). Another width needs a linear between, a parameter of the caller's."""
    if student.ndim == teacher.ndim == 2 and student.shape[1] != teacher.shape[1]:
        raise ValueError(f"the student's embeddings are {student.shape[1]} wide and the teacher's {teacher.shape[1]}: put a linear on the student's")
    alike(student=student, teacher=teacher)
    return (wide(student) - wide(teacher.detach())).square().mean(1).sum(), len(student)


def margin_mse(queries: Tensor, positives: Tensor, negatives: Tensor, margins: Tensor) -> tuple[Tensor, int]:
    """queries, positives (B, C), negatives (B, K, C), margins (B, K): teacher's score of the positive less that of each negative."""
    alike(queries=queries, positives=positives)
    if negatives.ndim != 3 or (negatives.shape[0], negatives.shape[2]) != queries.shape:
        raise ValueError(f"negatives are {tuple(negatives.shape)}: wanted ({len(queries)}, any number, {queries.shape[1]})")
    if margins.shape != negatives.shape[:2]:
        raise ValueError(f"margins are {tuple(margins.shape)}: wanted one for each negative, {tuple(negatives.shape[:2])}")
    q, p, n = wide(queries), wide(positives), wide(negatives)
    leads = (q * p).sum(1, keepdim=True) - (q[:, None] * n).sum(2)                               # (B, K)
    return (leads - margins.detach()).square().sum(), margins.numel()
