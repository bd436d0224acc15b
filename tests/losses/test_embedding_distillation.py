"""A teacher's embeddings and margins, worked by hand."""

import pytest
import torch

from minift.losses.embedding_distillation import margin_mse, to_teacher

STUDENT, TEACHER = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
Q, P = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0], [5.0, 3.0]])
N = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, -1.0]]])
MARGINS = torch.tensor([[1.0, 3.0], [2.0, 1.0]])


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_to_teacher_worked_by_hand():               # (4 + 1) / 3 + 9 / 3
    total, texts = to_teacher(STUDENT, TEACHER)
    assert texts == 2 and total.item() == pytest.approx(5 / 3 + 3, abs=1e-6)


def test_margin_mse_worked_by_hand():               # q . p = 4 and 3; q . n = 2, 1 and 1, -1: leads 2, 3 and 2, 4; off by 1, 0 and 0, 3
    total, differences = margin_mse(Q, P, N, MARGINS)
    assert differences == 4 and total.item() == pytest.approx(10.0, abs=1e-5)


def test_trap42_a_student_that_is_its_teacher_has_no_loss_and_no_gradient():
    student = STUDENT.clone().requires_grad_()
    total, _ = to_teacher(student, STUDENT)
    total.backward()
    assert total == 0 and not student.grad.any()


def test_trap42_nothing_reaches_the_teacher():
    teacher, margins = TEACHER.clone().requires_grad_(), MARGINS.clone().requires_grad_()
    student, q = STUDENT.clone().requires_grad_(), Q.clone().requires_grad_()
    (to_teacher(student, teacher)[0] + margin_mse(q, P, N, margins)[0]).backward()
    assert teacher.grad is None and margins.grad is None and student.grad.any() and q.grad.any()


def test_gradients_by_finite_differences():
    q, p, n = (draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(3, 5), (3, 5), (3, 2, 5)]))
    assert torch.autograd.gradcheck(lambda *x: margin_mse(*x, draw(3, 2, seed=7))[0], (q, p, n))
    assert torch.autograd.gradcheck(lambda x: to_teacher(x, p)[0], q)


def test_only_differences_of_the_teachers_scores_count():
    """Its scores are 100 too high and twice as wide as dot products: the margins know nothing of the first."""
    scores_p, scores_n = torch.tensor([108.0, 106.0]), torch.tensor([[104.0, 102.0], [102.0, 98.0]])
    assert margin_mse(Q, P, N, (scores_p[:, None] - scores_n) / 2)[0] == 0


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="the student's embeddings are 3 wide and the teacher's 2: put a linear on the student's"):
        to_teacher(STUDENT, TEACHER[:, :2])
    with pytest.raises(ValueError, match=r"student \(2, 3\), teacher \(1, 3\)"):
        to_teacher(STUDENT, TEACHER[:1])
    with pytest.raises(ValueError, match=r"negatives are \(2, 2\): wanted \(2, any number, 2\)"):
        margin_mse(Q, P, N[:, 0], MARGINS)
    with pytest.raises(ValueError, match=r"margins are \(2,\): wanted one for each negative, \(2, 2\)"):
        margin_mse(Q, P, N, MARGINS[:, 0])
