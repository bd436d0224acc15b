"""Learning from rewards and preferences: answers, what they are worth, and who says so.

    rollout.py            the policy answers prompts
    reference.py          the policy it is held to
    update.py             what PPO's and GRPO's updates share
    rewards.py            what --rewards names, and several rewards as one
    reward_source.py      what a source of rewards gets and gives, checked
    builtin_rewards.py    rules: PEP 257, length, a pattern, an exact number
    function_rewards.py   a Python function of your own
    model_rewards.py      a trained reward model
    candidates.py         K answers to each prompt, and the pairs worth judging
    judge.py              which of two answers is better: a model, an endpoint or a rule says
    endpoint.py           asking an OpenAI-compatible server, and what can go wrong
    verdicts.py           both orders asked, disagreement dropped, nothing asked twice"""
