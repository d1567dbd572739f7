"""From a checked request to a plan: prompt ids, sampling parameters, and how the answer is to be read.

In: a request of `server.protocol` and a model's tokenizer and template. Out: a `PromptPlan`. Must never know what is
done with the answer, and never cut a prompt to fit.
"""
