"""Attention among the M words of a sentence, on registers: every value is [8, 128], 1,024 sentences at once."""

import functools

import jax
import jax.numpy as jnp

from tnt_jax.models.fast.pallas.layout import LANES, SUBLANES, Index, Sizes
from tnt_jax.models.fast.pallas.tiles import register_at


def _tree(operation, values):
    """Combines values pairwise, which makes a short chain of dependent operations."""
    while len(values) > 1:
        values = [operation(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def _dots(left, right, count):
    """left (channels of one word), right(word, channel) -> left's dot products with `count` words."""
    return [_chain([channel * right(m, c) for c, channel in enumerate(left)]) for m in range(count)]


def _mix(weights, right):
    """weights (one per word), right(word) -> the weighted sum over words."""
    return _chain([weight * right(m) for m, weight in enumerate(weights)])


def _chain(terms):
    """Sums in order, which keeps the fewest registers alive."""
    return functools.reduce(jnp.add, terms)


def _at(head, sizes):
    """Returns a function (word, channel of the head) -> index of that register in a registers ref [M * C]."""
    return lambda word, c: register_at(word * sizes.inner_dim + head * sizes.head_dim + c)


def _group_size(sizes) -> int:
    """Key words whose scores are in registers at once; more than 16 form groups, with scores computed twice."""
    return next(count for count in range(min(16, sizes.num_words), 0, -1) if sizes.num_words % count == 0)


def _over_groups(sizes, body, carry):
    """Runs body(first key word, carry) -> carry over the groups of key words; a single group needs no loop."""
    count = _group_size(sizes)
    if count == sizes.num_words:
        return body(0, carry)
    return jax.lax.fori_loop(0, sizes.num_words // count, lambda group, carry: body(group * count, carry), carry)


def attend(step: Index, query: jax.Ref, key: jax.Ref, value: jax.Ref, lse: jax.Ref | None, sizes: Sizes) -> None:
    """Attention of query word and head number `step` to the M words; the output overwrites the query.

    query, key, value refs [M * C registers]; the query already has the factor log2(e) / sqrt(head_dim). lse ref
    [M * heads, 8, 128], unless None, receives log2 of the softmax denominator. Stores come last: the compiler cannot
    tell that they do not alias the loads above.
    """
    at, channels = _at(jax.lax.rem(step, sizes.num_heads), sizes), range(sizes.head_dim)
    slots, count = [at(jax.lax.div(step, sizes.num_heads), c) for c in channels], _group_size(sizes)
    queries = [query[p] for p in slots]

    def scores_from(first):
        return _dots(queries, lambda m, c: key[at(first + m, c)], count)

    only = scores_from(0) if count == sizes.num_words else None
    lowest = jnp.full((SUBLANES, LANES), -jnp.inf, jnp.float32)

    def highest(first, top):
        return jnp.maximum(top, _tree(jnp.maximum, scores_from(first)))

    top = _tree(jnp.maximum, only) if only else _over_groups(sizes, highest, lowest)

    def mix(first, carry):
        weights = [jnp.exp2(score - top) for score in only or scores_from(first)]
        terms = [_tree(jnp.add, weights)]
        terms += [_mix(weights, lambda m, c=c: value[at(first + m, c)]) for c in channels]
        return terms if carry is None else [a + b for a, b in zip(carry, terms, strict=True)]

    empty = None if only else [jnp.zeros((SUBLANES, LANES), jnp.float32)] * (sizes.head_dim + 1)
    total, *mixed = _over_groups(sizes, mix, empty)
    if lse is not None:
        lse[step] = top + jnp.log2(total)
    inverse = 1.0 / total
    for p, result in zip(slots, mixed, strict=True):
        query[p] = result * inverse


def queries_a_step(sizes: Sizes) -> int:
    """Query words per step of `attend_backward`: two share the loads and stores of the gradients they add to."""
    return 2 if sizes.num_words % 2 == 0 else 1


def attend_backward(
    step: Index,
    query: jax.Ref,
    key: jax.Ref,
    value: jax.Ref,
    lse: jax.Ref,
    output: jax.Ref,
    key_gradient: jax.Ref,
    value_gradient: jax.Ref,
    sizes: Sizes,
) -> None:
    """Adds to the gradients of keys and values; the gradients of the step's queries overwrite the queries.

    `step` counts heads fastest, then groups of `queries_a_step` words. output ref [M * C registers] is the gradient of
    the attention's output. Gradients of queries and keys lack the factor log(2) of the base-2 softmax.
    """
    head, count = jax.lax.rem(step, sizes.num_heads), queries_a_step(sizes)
    words = [jax.lax.div(step, sizes.num_heads) * count + w for w in range(count)]
    at, channels, group = _at(head, sizes), range(sizes.head_dim), _group_size(sizes)
    queries = [[query[at(w, c)] for c in channels] for w in words]
    cotangent = [[output[at(w, c)] for c in channels] for w in words]
    tops = [lse[w * sizes.num_heads + head] for w in words]

    def softmax(index, first):
        scores = _dots(queries[index], lambda m, c: key[at(first + m, c)], group)
        weights = [jnp.exp2(score - tops[index]) for score in scores]
        return weights, _dots(cotangent[index], lambda m, c: value[at(first + m, c)], group)

    def mean_slope(weights, slopes):
        return _tree(jnp.add, [a * b for a, b in zip(weights, slopes, strict=True)])

    only = [softmax(i, 0) for i in range(count)] if group == sizes.num_words else None
    zero = jnp.zeros((SUBLANES, LANES), jnp.float32)

    def add_means(first, carry):
        return [mean + mean_slope(*softmax(i, first)) for i, mean in enumerate(carry)]

    means = [mean_slope(*pair) for pair in only] if only else _over_groups(sizes, add_means, [zero] * count)

    def add(first, carry):
        weights, slopes = zip(*(only or [softmax(i, first) for i in range(count)]), strict=True)
        slopes = [
            [a * (b - mean) for a, b in zip(*pair, strict=True)]
            for *pair, mean in zip(weights, slopes, means, strict=True)
        ]
        mixed = [_mix(row, lambda m, c=c: key[at(first + m, c)]) for row in slopes for c in channels]
        for m in range(group):
            for c in channels:
                slot = at(first + m, c)
                key_gradient[slot] += _chain([row[m] * q[c] for row, q in zip(slopes, queries, strict=True)])
                value_gradient[slot] += _chain([row[m] * u[c] for row, u in zip(weights, cotangent, strict=True)])
        return mixed if carry is None else [a + b for a, b in zip(carry, mixed, strict=True)]

    mixed = _over_groups(sizes, add, None if only else [zero] * (count * sizes.head_dim))
    for w, row in enumerate(words):
        for c in channels:
            query[at(row, c)] = mixed[w * sizes.head_dim + c]
