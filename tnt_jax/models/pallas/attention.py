"""Attention among the M words of a sentence on registers: every number below is [8, 128], 1,024 sentences at once."""

import functools

import jax
import jax.numpy as jnp

from .tiles import place

BACK = 2


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


def _place(step, sizes):
    """Number `step` of M * heads -> the rows of a query's channels, and those of any word's channels in the same head."""
    query, base = jax.lax.div(step, sizes.num_heads), jax.lax.rem(step, sizes.num_heads) * sizes.head_dim

    def at(word, c):
        return place(word * sizes.inner_dim + base + c)

    return [at(query, c) for c in range(sizes.head_dim)], at


def attend(step, query, key, value, lse, sizes):
    """Query word and head number `step`: softmax over the M words; the output takes the query's place.

    query, key, value refs [M * C registers]; the query carries log2(e) / sqrt(head_dim) already. lse ref
    [M * heads, 8, 128], unless None, gets log2 of the softmax's sum. Stores come last: the compiler cannot tell that
    they leave the loads above alone.
    """
    places, at = _place(step, sizes)
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


def attend_backward(step, query, key, value, lse, output, key_gradient, value_gradient, sizes):
    """Query word and head number `step`: adds to the gradients of keys and values; the query's gradient takes its place.

    output ref [M * C registers]: the gradient of the attention's output. Gradients of queries and keys lack the factor
    log(2) of the softmax to the base 2.
    """
    head, first = jax.lax.rem(step, sizes.num_heads), jax.lax.div(step, sizes.num_heads)*BACK
    _, at = _place(head, sizes)
    W=range(BACK); C=range(sizes.head_dim); M=range(sizes.num_words)
    places=[[at(first+w,c) for c in C] for w in W]
    queries = [[query[p] for p in places[w]] for w in W]
    upper = [[output[p] for p in places[w]] for w in W]
    weights,slopes=[],[]
    for w in W:
        top = lse[(first+w)*sizes.num_heads+head]
        scores = _dots(queries[w], lambda m, c: key[at(m, c)], sizes.num_words)
        weights.append([jnp.exp2(score - top) for score in scores])
        sl = _dots(upper[w], lambda m, c: value[at(m, c)], sizes.num_words)
        mean = _tree(jnp.add, [a * b for a, b in zip(weights[w], sl, strict=True)])
        slopes.append([a * (b - mean) for a, b in zip(weights[w], sl, strict=True)])
    mixed = [[_mix(slopes[w], lambda m, c=c: key[at(m, c)]) for c in C] for w in W]
    for m in M:
        for c in C:
            key_gradient[at(m, c)] += _chain([slopes[w][m] * queries[w][c] for w in W])
            value_gradient[at(m, c)] += _chain([weights[w][m] * upper[w][c] for w in W])
    for w in W:
        for p, result in zip(places[w], mixed[w], strict=True):
            query[p] = result
