"""Judges, worked by hand; both orders; the log that nothing is asked twice for; and an endpoint against a server with every fault."""

import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from minift.data.examples import ask as question_row
from minift.data.sources import Row
from minift.errors import InputError, RunError
from minift.recipes.loading import use_template
from minift.rl.endpoint import Endpoint, JudgeError, retry_after
from minift.rl.judge import EndpointJudge, LikelihoodJudge, RuleJudge, VerdictJudge, placeless, question, question_ids, read_verdict
from minift.rl.reward_source import Answered, request
from minift.rl.rewards import source
from minift.rl.verdicts import Decision, Tally, decide, decision, known, tally
from tests.conftest import random_model


def pair(first, second, prompt="Say it:"):
    row = Row("prompt/completion", "p.jsonl, line 1", prompt=prompt)
    return Answered(prompt, first, row), Answered(prompt, second, row)


class Script:
    """A judge that votes by a function of the two texts, and remembers what it was asked."""

    name, what = "script, here", "script"

    def __init__(self, vote):
        self.vote, self.asked = vote, []

    def __call__(self, pairs):
        for number, (first, second) in enumerate(pairs):
            self.asked.append((first.text, second.text))
            yield number, self.vote(first.text, second.text)


def longer(first, second):
    return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"


# ---------------------------------------------------------------------------------------------------------------- both orders


@pytest.mark.parametrize("votes, outcome, winner", [
    (("A", "B"), "agreed", 0), (("B", "A"), "agreed", 1), (("A", "A"), "place", None), (("B", "B"), "place", None),
    (("A", "tie"), "tie", None), (("tie", "tie"), "tie", None), ((None, "B"), "failed", None), (("tie", None), "failed", None),
])    # fmt: skip
def test_only_votes_that_survive_the_swap_name_a_winner(votes, outcome, winner):
    assert decision(*votes) == Decision(outcome, votes, winner)


def test_every_pair_is_shown_in_both_orders():
    judge = Script(longer)
    assert [d.winner for d in decide(judge, [pair("long one", "short"), pair("x", "xyz")])] == [0, 1]
    assert sorted(judge.asked) == sorted([("long one", "short"), ("short", "long one"), ("x", "xyz"), ("xyz", "x")])


def test_a_judge_that_likes_a_place_decides_nothing_and_its_bias_is_told():
    found = decide(Script(lambda first, second: "A" if first != "best" and second != "best" else longer(first, second)),
                   [pair("a", "bb"), pair("c", "dd"), pair("e", "best"), pair("best", "best")])    # fmt: skip
    counts = tally(found)
    assert counts == Tally(agreed=1, place=2, tie=1, failed=0, first_votes=5, votes=6) and counts.pairs == 4
    assert counts.position_bias == pytest.approx(2 / 3) and tally([]).position_bias == 0.0


# ---------------------------------------------------------------------------------------------------------------- the log


def test_what_was_asked_is_never_asked_again(tmp_path):
    pairs, log = [pair("a", "bb"), pair("ccc", "d")], tmp_path / "votes.jsonl"
    first = decide(Script(longer), pairs, log)
    again = Script(lambda *_: pytest.fail("asked again"))
    again.name = "script, somewhere else"
    assert decide(again, pairs, log) == first
    more = Script(longer)
    assert decide(more, [*pairs, pair("e", "ff")], log)[:2] == first and sorted(more.asked) == [("e", "ff"), ("ff", "e")]
    other = Script(longer)
    other.what = "another"
    assert decide(other, pairs, log) == first and len(other.asked) == 4


def test_without_asking_what_is_not_in_the_log_has_failed(tmp_path):
    log = tmp_path / "votes.jsonl"
    decide(Script(longer), [pair("a", "bb")], log)
    before = log.read_bytes()
    found = decide(Script(lambda *_: pytest.fail("asked")), [pair("a", "bb"), pair("ccc", "d")], log, ask=False)
    assert found == [Decision("agreed", ("B", "A"), 1), Decision("failed", (None, None))] and log.read_bytes() == before


@pytest.mark.parametrize("name, what", [
    ("likelihood:{}/m", "likelihood:m"), ("verdict:{}/other/../m/", "verdict:m"), ("{}/m", "m"), ("{}/mine.py:f", "mine.py:f"), ("regex:{}/no such", "regex:{}/no such"),
    ("length:3", "length:3"), ("likelihood:base", "likelihood:base"),
])    # fmt: skip
def test_a_judge_is_known_by_what_it_is_wherever_it_lies(tmp_path, monkeypatch, name, what):
    (tmp_path / "m").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, "."):                                             # a folder and a file, told in two ways
        assert placeless(name.format(root)) == what.format(root)
        assert all(made(name.format(root), None, None).what == what.format(root) for made in (LikelihoodJudge, VerdictJudge))
    assert RuleJudge(source("pep257")).what == "pep257"


def test_a_model_behind_an_endpoint_is_the_same_at_another_address():
    one, moved, other = (EndpointJudge(Endpoint(url, model)) for url, model in [("http://a/v1", "tiny"), ("https://b:8/v1", "tiny"), ("http://a/v1", "large")])
    assert one.what == moved.what != other.what and moved.name == "tiny at https://b:8/v1"


def test_a_judge_that_breaks_off_keeps_its_votes_and_goes_on_from_there(tmp_path):
    pairs, log = [pair("a", "bb"), pair("ccc", "d"), pair("e", "ffff")], tmp_path / "votes.jsonl"

    def until_ccc(first, second):
        if "ccc" in (first, second):
            raise JudgeError("the server is gone")
        return longer(first, second)

    with pytest.raises(JudgeError, match="is gone"):
        decide(Script(until_ccc), pairs, log)
    assert len(known(log)) == 2
    rest = Script(longer)
    assert [d.winner for d in decide(rest, pairs, log)] == [1, 0, 1] and len(rest.asked) == 4 and ("a", "bb") not in rest.asked


def test_a_line_cut_short_by_a_kill_is_asked_again(tmp_path):
    log = tmp_path / "votes.jsonl"
    decide(Script(longer), [pair("a", "bb")], log)
    log.write_bytes(log.read_bytes()[:-7])
    judge = Script(longer)
    assert decide(judge, [pair("a", "bb")], log)[0].winner == 1 and judge.asked == [("bb", "a")] and len(known(log)) == 2
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_failed_questions_are_asked_again_in_a_resumed_run(tmp_path):
    log = tmp_path / "votes.jsonl"
    assert decide(Script(lambda *_: None), [pair("a", "bb")], log)[0] == Decision("failed", (None, None))
    assert decide(Script(longer), [pair("a", "bb")], log)[0].winner == 1


def test_a_question_that_comes_twice_is_asked_once_and_one_of_another_prompt_is_not_the_same():
    judge = Script(longer)
    assert [d.winner for d in decide(judge, [pair("a", "bb"), pair("a", "bb"), pair("bb", "a")])] == [1, 1, 0] and len(judge.asked) == 2
    judge = Script(longer)
    decide(judge, [pair("a", "bb"), pair("a", "bb", prompt="Other:")])
    assert len(judge.asked) == 4


# ---------------------------------------------------------------------------------------------------------------- rules and local models


def test_a_rule_judges_by_its_reward_and_equal_rewards_are_ties():
    found = decide(RuleJudge(source("pep257")), [pair("Return it.", "returns it"), pair("no", "Return it."), pair("no", "neither")])
    assert [(d.outcome, d.winner) for d in found] == [("agreed", 0), ("agreed", 1), ("tie", None)]


def test_a_model_is_asked_the_request_and_both_answers_in_the_order_shown():
    first, second = pair(" One.", " Two.")
    asked = question((first, second), "Be brief.")
    assert asked.startswith("Be brief.\n") and asked.index("Say it:") < asked.index("Answer A:\nOne.") < asked.index("Answer B:\nTwo.")
    assert "Answer A:\nTwo." in question((second, first))


def test_a_request_is_shown_without_a_template():
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"})
    assert request(Row("messages", "x", messages=turns)) == "user: Hi\n\nassistant: Hello\n\nuser: Bye"
    assert request(Row("messages", "x", messages=(*turns, {"role": "assistant", "content": "never shown"}))) == "user: Hi\n\nassistant: Hello\n\nuser: Bye"
    assert request(Row("alpaca", "x", messages=turns[:1], input="there")) == "Hi\n\nthere"
    assert request(Row("prompt/completion", "x", prompt="def f", completion="never shown")) == "def f"


def test_likelihood_votes_for_the_label_that_the_model_finds_likelier(small_tokenizer):
    model, pairs = random_model(small_tokenizer), [pair(f"answer {n}" * n, f"other {n}") for n in range(1, 8)]
    a, b = (small_tokenizer.encode(label, add_special_tokens=False, continues=True) for label in (" A", " B"))
    shared = [x for x, y in zip(a, b) if x == y]
    votes = dict(LikelihoodJudge("m", model, small_tokenizer, batch_size=3)(pairs))
    with torch.no_grad():
        for number, shown in enumerate(pairs):
            logprobs = model(torch.tensor([question_ids(shown, question.__defaults__[0], small_tokenizer) + shared]))[0, -1].log_softmax(-1)
            assert votes[number] == ("A" if logprobs[a[len(shared)]] > logprobs[b[len(shared)]] else "B")
    assert set(votes) == set(range(7))


def test_how_much_likelier_a_label_is_does_not_depend_on_the_other_questions_of_the_batch(small_tokenizer):
    judge = LikelihoodJudge("m", random_model(small_tokenizer), small_tokenizer)
    prompts = [small_tokenizer.encode(text) for text in ("The object", "A name is bound to it", "It")]
    together = judge._gains(prompts, 70, 90)
    assert together == pytest.approx([judge._gains([prompt], 70, 90)[0] for prompt in prompts], abs=1e-4)
    logits = judge.model(torch.tensor([prompts[2]]))[0, -1]
    assert together[2] == pytest.approx((logits[70] - logits[90]).item(), abs=1e-4) and len({round(gain, 3) for gain in together}) == 3


def test_a_chat_model_judges_in_its_own_template(small_tokenizer):
    use_template(small_tokenizer, [question_row("x")], "alpaca")
    try:
        ids = question_ids(pair("a", "b"), "Be brief.", small_tokenizer)
        text = small_tokenizer.decode(ids)
        assert "### Instruction:\nBe brief." in text and text.endswith("### Response:\n") and "The better answer is" not in text
        assert set(dict(LikelihoodJudge("m", random_model(small_tokenizer), small_tokenizer)([pair("a", "b")])).values()) <= {"A", "B"}
    finally:
        small_tokenizer.chat_template = None


def test_a_question_longer_than_the_model_is_a_failure_and_the_others_are_judged(small_tokenizer):
    model = random_model(small_tokenizer, position="learned", max_positions=300)
    pairs = [pair("short", "also short"), pair("long " * 300, "short")]
    for judge in (LikelihoodJudge("m", model, small_tokenizer), VerdictJudge("m", model, small_tokenizer)):
        votes = dict(judge(pairs))
        assert votes.keys() == {0, 1} and votes[1] is None
    assert dict(LikelihoodJudge("m", model, small_tokenizer)(pairs))[0] in ("A", "B")


def test_a_written_verdict_is_generated_for_each_pair_and_read(small_tokenizer, monkeypatch):
    said = iter([[" A", "nonsense"], [" B."]])
    monkeypatch.setattr("minift.rl.judge.generate", lambda model, tokenizer, prompts, max_new_tokens: next(said))
    judge = VerdictJudge("m", random_model(small_tokenizer), small_tokenizer, batch_size=2)
    assert dict(judge([pair("a", "b"), pair("c", "d"), pair("e", "f")])) == {0: "A", 1: None, 2: "B"}


@pytest.mark.parametrize("text, vote", [
    ("A", "A"), (" B.", "B"), ("B\nbecause A is short", "B"), ("**A**: it is longer than B", "A"), ("Answer: B", "B"), ("The better answer is A, not B", "A"),
    ("[[B]] since A lies", "B"), ("I prefer [[A]] to B", "A"), ("(A)", "A"), ("A is better than B", "A"), ("I would say B", "B"), ('"B"', "B"),
    ("A good answer is B", None), ("Both A and B", None), ("", None), ("neither", None), ("a", None), ("BAD", None), ("[[A]] or [[B]]", None),
])    # fmt: skip
def test_reading_a_verdict(text, vote):
    assert read_verdict(text) == vote


# ---------------------------------------------------------------------------------------------------------------- the endpoint


class Server:
    """An OpenAI-compatible server whose replies come from a list, the last one for ever after: a verdict, or a function of the handler."""

    def __init__(self, *replies):
        self.replies, self.requests, self.lock = list(replies), [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append((self.path, dict(self.headers), body))
                    reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                try:
                    reply(self) if callable(reply) else send(self, 200, json.dumps({"choices": [{"message": {"content": reply}}]}))
                except (BrokenPipeError, ConnectionResetError):
                    pass                                                    # the asker did not wait

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        threading.Thread(target=lambda: self.http.serve_forever(poll_interval=0.01), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"


def send(handler, status, text="", **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(text.encode())))
    handler.end_headers()
    handler.wfile.write(text.encode())


def status(code, text="", **headers):
    return lambda handler: send(handler, code, text, **headers)


def body(text):
    return status(200, text)


@pytest.fixture
def serve(monkeypatch):
    """Replies -> (server, an endpoint that asks it without much patience)."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(*replies, **options):
        servers.append(Server(*replies))
        return servers[-1], Endpoint(servers[-1].url, "tiny", **{"wait": 0.001, "timeout": 5.0, "retries": 3, **options})

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def test_an_endpoint_is_asked_as_openai_would_be(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret\n")
    server, endpoint = serve("A", key_variable="MY_KEY", max_tokens=5)
    assert endpoint.ask("Which?", read_verdict) == "A" and not endpoint.counts
    [(path, headers, asked)] = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    assert asked == {"model": "tiny", "messages": [{"role": "user", "content": "Which?"}], "temperature": 0, "max_tokens": 5}
    assert "sk-secret" not in repr({**vars(endpoint), "key": "", "opener": ""})


def test_without_a_key_variable_no_key_is_sent(serve):
    server, endpoint = serve("A")
    endpoint.ask("Which?", read_verdict)
    assert "Authorization" not in server.requests[0][1]


@pytest.mark.parametrize("fault, kind", [
    (status(500, "oops"), "HTTP 500"), (status(503), "HTTP 503"), (status(429), "HTTP 429"), (body("{not json"), "malformed reply"), (body("[]"), "malformed reply"),
    (body('{"choices": []}'), "malformed reply"), (body('{"choices": [{"message": {"content": null}}]}'), "malformed reply"), ("no idea", "nonsense"), ("", "nonsense"),
    (lambda handler: handler.connection.close(), "no connection"), (lambda handler: time.sleep(1), "timed out"), (body("x" * (2**22 + 1)), "malformed reply"),
])    # fmt: skip
def test_a_passing_fault_is_counted_and_asked_again(serve, fault, kind):
    server, endpoint = serve(fault, fault, "B", timeout=0.2)
    assert endpoint.ask("Which?", read_verdict) == "B"
    assert dict(endpoint.counts) == {kind: 2} and len(server.requests) == 3


def test_a_fault_that_stays_is_given_up_after_the_retries(serve):
    server, endpoint = serve(status(500), retries=2)
    assert endpoint.ask("Which?", read_verdict) is None
    assert dict(endpoint.counts) == {"HTTP 500": 3, "given up": 1} and len(server.requests) == 3


def test_nobody_listening_is_a_fault_like_any_other(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    endpoint = Endpoint("http://127.0.0.1:9", "tiny", retries=1, wait=0.001)
    assert endpoint.ask("Which?", read_verdict) is None and dict(endpoint.counts) == {"no connection": 2, "given up": 1}


def test_a_reply_that_drips_in_is_a_time_out(serve):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    _, endpoint = serve(drip, "A", timeout=0.3)
    assert endpoint.ask("Which?", read_verdict) == "A" and dict(endpoint.counts) == {"timed out": 1}


@pytest.mark.parametrize("code", [400, 401, 404, 302])
def test_a_refusal_stops_at_once_with_what_the_server_says_but_never_the_key(serve, monkeypatch, code):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server, endpoint = serve(status(code, "bad key sk-secret", Location="http://127.0.0.1:9/"), key_variable="MY_KEY")
    with pytest.raises(JudgeError, match=rf"refuses: HTTP {code} .*: bad key \*\*\*;") as caught:
        endpoint.ask("Which?", read_verdict)
    assert len(server.requests) == 1 and "sk-secret" not in str(caught.value) and issubclass(JudgeError, RunError)


def test_waits_double_and_retry_after_is_obeyed_up_to_a_limit(serve):
    waits = []

    class Clock(threading.Event):
        def wait(self, seconds):
            waits.append(seconds)
            return False

    busy = lambda after: status(429, Retry_After=after)
    _, endpoint = serve(status(500), status(500), status(500), busy("7"), busy("7000"), busy("soon"), "A", retries=6, wait=1.0, longest_wait=60.0)
    assert endpoint.ask("Which?", read_verdict, Clock()) == "A"
    assert waits == [1.0, 2.0, 4.0, 7.0, 60.0, 32.0]


def test_retry_after_may_be_a_date():
    assert retry_after(email.utils.formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=3)
    assert retry_after(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0.0
    assert retry_after(None) == retry_after("soon") == retry_after("-4") == 0.0 and retry_after("2.5") == 2.5


def test_too_many_failures_stop_the_run_and_the_votes_so_far_are_kept(serve, tmp_path):
    pairs, log = [pair("x" * n, "y") for n in range(2, 12)], tmp_path / "votes.jsonl"
    server, endpoint = serve("A", "B", status(500, "down"), workers=1, retries=1, max_failures=2)
    with pytest.raises(JudgeError, match=r"failed on 3 questions, each after 2 attempts; the last: HTTP 500: down.*--resume"):
        decide(EndpointJudge(endpoint), pairs, log)
    assert len(server.requests) == 2 + 3 * 2 and len(known(log)) == 2
    server.replies = ["B"]
    assert len(decide(EndpointJudge(Endpoint(endpoint.url, "tiny")), pairs, log)) == 10 and len(server.requests) == 8 + 18


def test_no_more_than_the_workers_are_on_their_way_and_every_reply_finds_its_question(serve):
    lock, there, most = threading.Lock(), [], []

    def slow(handler):                                                       # a question has gone before its reply is sent, not after
        with lock:
            there.append(handler)
            most.append(len(there))
        time.sleep(0.05)
        with lock:
            there.remove(handler)
        send(handler, 200, json.dumps({"choices": [{"message": {"content": "A"}}]}))

    _, endpoint = serve(slow, workers=3)
    assert sorted(endpoint.ask_all([str(n) for n in range(9)], read_verdict)) == [(n, "A") for n in range(9)] and max(most) == 3
    picky, endpoint = serve(lambda handler: None, workers=3)
    picky.replies = [lambda handler: send(handler, 200, json.dumps({"choices": [{"message": {"content": picky.requests[-1][2]["messages"][0]["content"]}}]}))]
    endpoint.workers = 1
    assert dict(endpoint.ask_all(["Answer: A", "Answer: B", "Answer: A"], read_verdict)) == {0: "A", 1: "B", 2: "A"}


def test_an_asker_who_leaves_does_not_wait_for_the_rest(serve):
    server, endpoint = serve("A", status(500), workers=1, wait=30.0)
    asking = endpoint.ask_all(["1", "2", "3", "4"], read_verdict)
    assert next(asking) == (0, "A")
    start = time.monotonic()
    asking.close()
    assert time.monotonic() - start < 5 and len(server.requests) <= 2


@pytest.mark.parametrize("options, text", [
    ({"url": "file:///etc/passwd"}, "wanted a URL such as"), ({"url": "localhost:8000"}, "wanted a URL such as"), ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
    ({"retries": -1}, "retries >= 0"), ({"timeout": 0}, "timeout > 0"), ({"workers": 0}, "workers >= 1"),
])    # fmt: skip
def test_an_endpoint_that_cannot_work_is_refused(options, text):
    with pytest.raises(InputError, match=text):
        Endpoint(**{"url": "http://127.0.0.1:9/v1", "model": "tiny", **options})
