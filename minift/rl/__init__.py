"""Learning from rewards and preferences: what a policy's answers are worth, and who says so.

    rewards.py            what --rewards names, and several rewards as one
    reward_source.py      what a source of rewards gets and gives, checked
    builtin_rewards.py    rules: PEP 257, length, a pattern, an exact number
    function_rewards.py   a Python function of your own
    model_rewards.py      a trained reward model
    judge.py              which of two answers is better: a model, an endpoint or a rule says
    endpoint.py           asking an OpenAI-compatible server, and what can go wrong
    candidates.py         K answers to each prompt, and the pairs worth judging
    verdicts.py           both orders asked, disagreement dropped, nothing asked twice"""
