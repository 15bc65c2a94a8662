"""Attention among the M words of a sentence on registers: every number below is [8, 128], 1,024 sentences at once."""

import functools

import jax
import jax.numpy as jnp

from tnt_jax.models.pallas.tiles import place


def _tree(operation, values):
    """Combines values pairwise: a short chain of dependent operations."""
    while len(values) > 1:
        values = [operation(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def _dots(left, right, count):
    """left: channels of one word; right(word, channel) -> its products with the `count` words."""
    return [_chain([channel * right(m, c) for c, channel in enumerate(left)]) for m in range(count)]


def _mix(weights, right):
    """weights: one a word; right(word) -> the sum over words of weight times right."""
    return _chain([weight * right(m) for m, weight in enumerate(weights)])


def _chain(terms):
    """The sum in order: the fewest registers alive."""
    return functools.reduce(jnp.add, terms)


def _at(head, sizes):
    """-> (word, channel of the head) -> index of that register in a registers ref [M * C]."""
    return lambda word, c: place(word * sizes.inner_dim + head * sizes.head_dim + c)


def attend(step, query, key, value, lse, sizes):
    """Query word and head number `step`: softmax over the M words; the output takes the query's place.

    query, key, value refs [M * C registers]; the query carries log2(e) / sqrt(head_dim) already. lse ref
    [M * heads, 8, 128], unless None, gets log2 of the softmax's sum. Stores come last: the compiler cannot tell that
    they leave the loads above alone.
    """
    at = _at(jax.lax.rem(step, sizes.num_heads), sizes)
    places = [at(jax.lax.div(step, sizes.num_heads), c) for c in range(sizes.head_dim)]
    scores = _dots([query[p] for p in places], lambda m, c: key[at(m, c)], sizes.num_words)
    top = _tree(jnp.maximum, scores)
    weights = [jnp.exp2(score - top) for score in scores]
    total = _tree(jnp.add, weights)
    mixed = [_mix(weights, lambda m, c=c: value[at(m, c)]) for c in range(sizes.head_dim)]
    if lse is not None:
        lse[step] = top + jnp.log2(total)
    inverse = 1.0 / total
    for p, result in zip(places, mixed, strict=True):
        query[p] = result * inverse


def queries_together(sizes) -> int:
    """Query words of one step of `attend_backward`: two share the loads and stores of the gradients they add to."""
    return 2 if sizes.num_words % 2 == 0 else 1


def attend_backward(step, query, key, value, lse, output, key_gradient, value_gradient, sizes):
    """Adds to the gradients of keys and values; the gradients of one head's next queries take the queries' place.

    `step` counts heads fastest, then `queries_together` words. output ref [M * C registers] is the gradient of the
    attention's output. Gradients of queries and keys lack the factor log(2) of the softmax to the base 2.
    """
    head, count = jax.lax.rem(step, sizes.num_heads), queries_together(sizes)
    words = [jax.lax.div(step, sizes.num_heads) * count + w for w in range(count)]
    at, channels = _at(head, sizes), range(sizes.head_dim)
    queries = [[query[at(w, c)] for c in channels] for w in words]
    upper = [[output[at(w, c)] for c in channels] for w in words]
    weights, slopes = [], []
    for w, q, u in zip(words, queries, upper, strict=True):
        top = lse[w * sizes.num_heads + head]
        scores = _dots(q, lambda m, c: key[at(m, c)], sizes.num_words)
        weights.append([jnp.exp2(score - top) for score in scores])
        raw = _dots(u, lambda m, c: value[at(m, c)], sizes.num_words)
        mean = _tree(jnp.add, [a * b for a, b in zip(weights[-1], raw, strict=True)])
        slopes.append([a * (b - mean) for a, b in zip(weights[-1], raw, strict=True)])
    mixed = [[_mix(row, lambda m, c=c: key[at(m, c)]) for c in channels] for row in slopes]
    for m in range(sizes.num_words):
        for c in channels:
            key_gradient[at(m, c)] += _chain([row[m] * q[c] for row, q in zip(slopes, queries, strict=True)])
            value_gradient[at(m, c)] += _chain([row[m] * u[c] for row, u in zip(weights, upper, strict=True)])
    for w, row in zip(words, mixed, strict=True):
        for c in channels:
            query[at(w, c)] = row[c]
