"""Planted bugs in the tokenizers and chat templates; each must make the named test file fail."""

from tests.mutants.mutant import Mutant

VOCABULARY, TOKENIZER, FOLDER = "minift/tokenizer/vocabulary.py", "minift/tokenizer/tokenizer.py", "minift/tokenizer/folder.py"
TRAINING, CHAT = "minift/tokenizer/training.py", "minift/data/chat.py"
TOKENS_TEST, CHAT_TEST = "tests/test_tokenizer.py", "tests/data/test_chat.py"

MUTANTS = [
    Mutant("second_bos", TOKENIZER, "if add_special_tokens and self.adds_bos and not continues and ids[:1] != [self.bos_id]:",
           "if add_special_tokens and self.adds_bos and not continues:", TOKENS_TEST),
    Mutant("second_bos_in_segments", TOKENIZER, "if number == 0 and self.adds_bos and new[:1] != [self.bos_id]:",
           "if number == 0 and self.adds_bos:", CHAT_TEST),
    Mutant("bos_in_every_segment", TOKENIZER, "new = self.encode(text, add_special_tokens=False, continues=number > 0)",
           "new = self.encode(text, continues=number > 0)", TOKENS_TEST),
    Mutant("segments_start_words", TOKENIZER, "continues=number > 0)", "continues=False)", TOKENS_TEST),
    Mutant("bos_learned", TOKENIZER, "ids, learned = [self.bos_id], [False]", "ids, learned = [self.bos_id], [True]", TOKENS_TEST),
    Mutant("half_characters_streamed", TOKENIZER, 'return "" if self._text().endswith("\\ufffd") else self.flush()', "return self.flush()",
           TOKENS_TEST),
    Mutant("stream_drops_spaces", TOKENIZER, "return self.tokenizer.decode(self.held, continues=self.continues)",
           "return self.tokenizer.decode(self.held)", TOKENS_TEST),
    Mutant("pad_is_unk", TOKENIZER, "self.pad_id = self.eos_id if self.pad_id is None", "self.pad_id = self.unk_id if self.pad_id is None",
           TOKENS_TEST),
    Mutant("embedding_one_too_small", TOKENIZER, "if tokenizer.vocab_size > vocab_size:", "if tokenizer.vocab_size > vocab_size + 1:", TOKENS_TEST),
    Mutant("metaspace_continues_with_a_space", VOCABULARY, 'part["prepend_scheme"] = "never"', 'part["prepend_scheme"] = "first"', TOKENS_TEST),
    Mutant("dummy_space_turned_on_for_off", VOCABULARY, 'False: b"\\x1a\\x02\\x18\\x00"', 'False: b"\\x1a\\x02\\x18\\x01"', TOKENS_TEST),
    Mutant("short_special_token_first", VOCABULARY, "sorted(self.whole, key=len, reverse=True)", "sorted(self.whole, key=len)", TOKENS_TEST),
    Mutant("any_id_of_config_is_special", FOLDER, "if i in vocabulary.special_ids]\n", "if i < vocabulary.size]\n", TOKENS_TEST),
    Mutant("model_file_before_tokenizer_json", FOLDER, '("tokenizer.json", *SENTENCEPIECE_FILES) if name', '(*SENTENCEPIECE_FILES, "tokenizer.json") if name',
           TOKENS_TEST),
    Mutant("template_file_ignored", FOLDER, 'if (folder / "chat_template.jinja").is_file():', "if False:", TOKENS_TEST),
    Mutant("training_folds_spaces", TRAINING, "remove_extra_whitespaces=False", "remove_extra_whitespaces=True", TOKENS_TEST),
    Mutant("training_normalises", TRAINING, 'normalization_rule_name="identity"', 'normalization_rule_name="nmt_nfkc"', TOKENS_TEST),
    Mutant("training_without_bytes", TRAINING, "byte_fallback=True", "byte_fallback=False", TOKENS_TEST),
    Mutant("prompt_without_its_request", CHAT, "prompt = _run(source, messages[:i], tokenizer, True)", "prompt = _run(source, messages[:i], tokenizer, False)",
           CHAT_TEST),
    Mutant("end_of_turn_not_learned", CHAT, "    return len(written)\n", "    return len(written) - 1\n", CHAT_TEST),
    Mutant("end_of_turn_not_wanted", CHAT, "if not any(written.endswith(token) for token in closing):", "if False:", CHAT_TEST),
    Mutant("first_answer_only", CHAT, "        done = whole[:end]\n", "        done = whole[:end]\n        break\n", CHAT_TEST),
    Mutant("sandbox_is_silent", CHAT, 'raise jinja2.sandbox.SecurityError(f"it reads {attribute!r} of a {type(obj).__name__}")',
           'return self.undefined("")', CHAT_TEST),
    Mutant("no_sandbox", CHAT, "class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):", "class _Sandbox(jinja2.Environment):", CHAT_TEST),
]
