"""--loss distill: a teacher's vectors in the student's width, told once for each text; what is refused."""

import json
import re

import pytest
import torch

from minift import folder as folders
from minift.embed import embed
from minift.folder import save
from minift.models.pooling import Pooling
from minift.recipes.embed import Config
from minift.recipes.embed_losses import follow, objective
from minift.recipes.embed_rows import Row, Rows
from minift.recipes.embed_teacher import in_width, leading_directions, teach
from minift.recipes.encode import EmbedderChoice
from minift.train.log import read_metrics
from tests.recipes.test_embed import encoder_folder, files, learn  # noqa: F401 - fixtures

PAIRS = [Row("", ("The list is sorted.", "sorted")), Row("", ("A string is returned.", "str")), Row("", ("None, or an object.", "None"))]


def test_a_wider_teacher_is_read_along_its_leading_directions_worked_by_hand():
    vectors = torch.tensor([[0.0, 3.0, 4.0], [0.0, 6.0, 8.0], [1.0, 0.0, 0.0]])       # two along (0, 0.6, 0.8), squares 25 + 100; one across, 1
    directions, kept = leading_directions(vectors, 1)
    torch.testing.assert_close(directions.abs(), torch.tensor([[0.0], [0.6], [0.8]]))
    assert kept == pytest.approx(125 / 126)
    torch.testing.assert_close(in_width(vectors, directions, 1).abs(), torch.tensor([[5.0], [10.0], [0.0]]))


def test_what_a_width_holds_keeps_every_dot_product():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) @ torch.randn(4, 7, generator=torch.Generator().manual_seed(1))    # 7 wide, of rank 4
    directions, kept = leading_directions(x, 4)
    assert kept == pytest.approx(1.0)
    torch.testing.assert_close(in_width(x, directions, 4) @ in_width(x, directions, 4).T, x @ x.T, rtol=0, atol=1e-4)
    for width in (7, 12):                                                              # a narrower teacher, or one as wide: nothing is lost
        assert leading_directions(x, width) == (None, 1.0)
        same = in_width(x, None, width)
        assert same.shape == (9, width) and torch.equal(same[:, :7], x) and not same[:, 7:].any()


def test_columns_follow_their_own_teachers_worked_by_hand():
    u, v = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 2.0]])
    total, texts = follow(u, v, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0]]))
    assert texts == 3 and total.item() == pytest.approx(0.5 + 2.0)                     # mean over C of 1 and 0; of 4 and 0


def test_matryoshka_cuts_the_teacher_as_well():
    config = Config(data=("x",), out="y", loss="distill", teacher="base", dims=(1, 2))
    rows = Rows(PAIRS, lambda texts, side: [[1]] * len(texts), config)
    rows.taught = {side: {text: torch.tensor([3.0, 4.0]) for text in ids} for side, ids in rows.ids.items()}
    student = torch.tensor([[30.0, 40.0]] * 2)                                        # the same direction in both dims: nothing to learn
    total, _ = objective(config, rows.batch([0, 2]), 0.05)(student, student)
    assert total.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_each_text_is_told_the_teachers_vector_of_itself_under_its_sides_prompt(small_tokenizer, small_model, tmp_path, normalize):
    model, tokenizer = folders.load(small_model)
    model.pooling = Pooling("mean", False, 64, {"query": "find ", "document": "in "})
    save(model, tokenizer, tmp_path / "teacher")
    config = Config(data=("x",), out="y", loss="distill", teacher=str(tmp_path / "teacher"), precision="fp32")
    train, valid = (Rows(rows, lambda texts, side: [[1]] * len(texts), config) for rows in (PAIRS[:2], PAIRS[2:]))
    assert "32 numbers a text" in teach(config, Pooling(normalize=normalize), 32, train, valid)
    batch = train.batch([1, 0])
    for column, side in enumerate(("query", "document")):
        wanted = embed(model, tokenizer, [PAIRS[i].texts[column] for i in (1, 0)], prompt=side)
        torch.testing.assert_close(batch.taught[column], wanted / wanted.norm(dim=1, keepdim=True) if normalize else wanted)
    assert valid.batch([0]).taught[0].shape == (1, 32)


def test_a_narrower_students_directions_come_from_the_texts_to_train_on(small_model):
    config = Config(data=("x",), out="y", loss="distill", teacher=str(small_model), precision="fp32")
    many = [Row("", (f"list {i}", f"object {i}")) for i in range(9)]
    train, valid = (Rows(rows, lambda texts, side: [[1]] * len(texts), config) for rows in (many, PAIRS))
    said = teach(config, Pooling(), 5, train, valid)
    assert re.search(r"32 numbers a text, of which 5 hold \d\d\.\d %", said)
    texts = [text for column in zip(*(row.texts for row in many)) for text in column]
    directions, _ = leading_directions(embed(*folders.load(small_model), texts), 5)
    wanted = in_width(embed(*folders.load(small_model), [PAIRS[2].texts[1]]), directions, 5)[0]
    torch.testing.assert_close(valid.taught["document"][PAIRS[2].texts[1]], wanted / wanted.norm())


@pytest.mark.parametrize("file", ["pairs", "triplets", "scored", "nli", "labelled", "texts"])
def test_a_student_learns_from_rows_of_every_kind(learn, file, tmp_path):  # noqa: F811
    status, said, complaint = learn("--loss", "distill", "--teacher", "base", file=file)
    assert status == 0, complaint
    assert "the teacher, base: 256 numbers a text, of which 24 hold" in said
    assert "relation" not in (tmp_path / "run/adapter/adapter_config.json").read_text()


def test_a_student_comes_to_lie_where_its_teacher_does(learn, files, encoder_folder, small_model, tmp_path):  # noqa: F811
    status, said, complaint = learn("--loss", "distill", "--teacher", small_model, "--method", "full", "--lr", 1e-2, "--epochs", 60, file="texts", steps=150)
    assert status == 0, complaint
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert sum(losses[-5:]) < 0.35 * sum(losses[:5])
    texts = [json.loads(line)["text"] for line in (files / "texts.jsonl").read_text().splitlines()]
    cosines = lambda name: (lambda x: x @ x.T)(embed(*EmbedderChoice(model=str(name)).load(), texts)).flatten()
    teachers = cosines(small_model)
    agree = lambda name: torch.corrcoef(torch.stack([cosines(name), teachers]))[0, 1].item()
    assert agree(tmp_path / "run/model") > agree(encoder_folder) + 0.2                 # its cosines, not its numbers alone


@pytest.mark.parametrize("options, text", [
    (["--loss", "distill"], "--loss distill wants --teacher, the folder of the model to learn from"),
    (["--teacher", "base"], "--loss infonce has no teacher: leave --teacher out, or take --loss distill"),
    (["--loss", "distill", "--teacher", "no/such"], "no such folder: no/such"),
    (["--loss", "distill", "--teacher", "base", "--mini-batch", 4], "--mini-batch is for losses that look at a whole batch"),
    (["--loss", "distill", "--teacher", "base", "--temperature", 0.1], "--temperature is no option of --loss distill"),
])    # fmt: skip
def test_what_cannot_be_is_refused_before_there_is_a_folder(learn, tmp_path, options, text):  # noqa: F811
    status, _, complaint = learn(*options)
    assert status == 2 and not (tmp_path / "run").exists()
    assert re.search(text, complaint), complaint
