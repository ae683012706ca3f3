"""Every credit rule written down slowly: dictionaries over token tuples, loops, no tensors. Tests and the benchmark
hold the fast path against it. It shares no code with the library.

A group is `rows` (token sequences, one per completion), `surprisal` (lists of nats, as long as the rows) and `rewards`
(floats, NaN = unscored). Advantages come back as one list of `width` floats per completion, 0 at padding.
"""

from math import isnan, sqrt


def boundaries(surprisal, lengths, max_boundaries=2, min_prefix=1):
    alive = [length for length in lengths if length]
    if not alive or max_boundaries == 0:
        return []
    spacing = max(2, min(alive) // (max_boundaries + 1))
    candidates = [(-surprisal[i][t], i, t) for i, end in enumerate(lengths) for t in range(max(1, min_prefix), end)]
    taken = []
    for _, _, t in sorted(candidates):
        if all(abs(t - other) >= spacing for other in taken):
            taken.append(t)
            if len(taken) == max_boundaries:
                break
    return sorted(taken)


def leaf_spans(rows, rewards, cuts, terms="both", group_ended=True, sqrt_count=True):
    """Return for every completion its (start, end, raw credit)."""
    scored = _scored(rows, rewards)
    root = _mean([rewards[i] for i in scored])
    paths = {i: [] for i in scored}
    for t in cuts:
        groups = {}
        for i in scored:
            if group_ended or len(rows[i]) > t:
                groups.setdefault(tuple(rows[i][:t]), []).append(i)
        for prefix, members in groups.items():
            if len(members) >= 2:
                value = _mean([rewards[i] for i in members])
                for i in members:
                    paths[i].append((len(prefix), len(members), value))
    spans = [[] for _ in rows]
    for i in scored:
        start, above = 0, root
        for end, n, value in [*paths[i], (len(rows[i]), None, rewards[i])]:
            if end == start:
                continue
            credit = {"both": 1, "global": 1, "local": 0}[terms] * (value - root)
            credit += {"both": 1, "global": 0, "local": 1}[terms] * (value - above)
            spans[i].append((start, end, credit / sqrt(n) if n and sqrt_count else credit))
            start, above = end, value
    return spans


def leaf_advantages(rows, rewards, cuts, width, normalize=True, **options):
    spans = leaf_spans(rows, rewards, cuts, **options)
    result = [[0.0] * width for _ in rows]
    if _flat(rows, rewards):
        return result
    raw = [credit for completion in spans for _, _, credit in completion]
    mean, spread = (_mean(raw), max(_std(raw), 1e-6)) if normalize else (0.0, 1.0)
    for i, completion in enumerate(spans):
        for start, end, credit in completion:
            result[i][start:end] = [(credit - mean) / spread] * (end - start)
    return result


def per_token(name, rows, rewards, width, **options):
    """Return the advantages of every rule but LEAF, by default with its default options."""
    rows = [tuple(row) for row in rows]
    result = [[0.0] * width for _ in rows]
    if not _flat(rows, rewards):
        credit = RELATIVES[name](rows, rewards, **options)
        for i in _scored(rows, rewards):
            result[i][: len(rows[i])] = [credit(i, t) for t in range(len(rows[i]))]
    return result


# Each relative returns the credit of token t of completion i as a function.
def grpo(rows, rewards):
    known = [rewards[i] for i in _scored(rows, rewards)]
    return lambda i, t: (rewards[i] - _mean(known)) / (max(_std(known), 1 / 3) + 1e-6)


def dr_grpo(rows, rewards):
    known = [rewards[i] for i in _scored(rows, rewards)]
    return lambda i, t: rewards[i] - _mean(known)


def rloo(rows, rewards):
    scored = _scored(rows, rewards)
    return lambda i, t: rewards[i] - _mean([rewards[j] for j in scored if j != i])


def max_rl(rows, rewards):
    scored = _scored(rows, rewards)
    mean = _mean([rewards[j] for j in scored])
    return lambda i, t: (rewards[i] - mean) / mean


def tempo(rows, rewards):
    members = _members(rows, rewards)
    known, step = members[()], spo(rows, rewards)
    return lambda i, t: (rewards[i] - _mean(known) + step(i, t)) / (_std(known) + 1e-6)


def spo(rows, rewards):
    members = _members(rows, rewards)
    return lambda i, t: _mean(members[rows[i][: t + 1]]) - _mean(members[rows[i][:t]])


def spo_whole_segment(rows, rewards):
    members = _members(rows, rewards)
    return lambda i, t: _mean(members[rows[i][: t + 1]]) - _mean(members[_fork_above(members, rows[i], t)])


def treerl(rows, rewards):
    members = _members(rows, rewards)

    def credit(i, t):
        own = members[rows[i][: t + 1]]
        parent = members[_fork_above(members, rows[i], t)]
        return ((_mean(own) - _mean(members[()])) + (_mean(own) - _mean(parent))) / sqrt(len(own))

    return credit


def treepo(rows, rewards):
    members = _members(rows, rewards)

    def credit(i, t):
        # Groups along a path are nested, so a group is known by its size.
        nested = {len(members[rows[i][:t]]): members[rows[i][:t]] for t in range(len(rows[i]) + 1)}
        groups = [group for size, group in nested.items() if size >= 2]
        weighted = sum(len(group) * (rewards[i] - _mean(group)) for group in groups)
        return weighted / sum(len(group) for group in groups)

    return credit


def shrunken(rows, rewards, kappa=4.0, leave_one_out=True):
    def baseline(i, prefix):
        others = [j for j in _scored(rows, rewards) if not (leave_one_out and j == i)]
        same = [j for j in others if rows[j][: len(prefix)] == prefix]
        if not prefix:
            return _mean([rewards[j] for j in same])
        if not same and kappa == 0:
            return baseline(i, prefix[:-1])
        return (sum(rewards[j] for j in same) + kappa * baseline(i, prefix[:-1])) / (len(same) + kappa)

    return lambda i, t: rewards[i] - baseline(i, rows[i][:t])


RELATIVES = {
    rule.__name__: rule
    for rule in (grpo, dr_grpo, rloo, tempo, spo, spo_whole_segment, treerl, treepo, shrunken, max_rl)
}


def _scored(rows, rewards):
    return [i for i, row in enumerate(rows) if row and not isnan(rewards[i])]


def _flat(rows, rewards):
    return len({rewards[i] for i in _scored(rows, rewards)}) < 2


def _members(rows, rewards):
    """Return for every prefix, as a tuple, the rewards of the scored completions that start with it."""
    members = {(): []}
    for i in _scored(rows, rewards):
        for t in range(len(rows[i]) + 1):
            members.setdefault(rows[i][:t], []).append(rewards[i])
    return members


def _fork_above(members, row, t):
    """Return the longest prefix, no longer than t, that more completions share than the prefix through t."""
    size = len(members[row[: t + 1]])
    return next((row[:u] for u in range(t, 0, -1) if len(members[row[:u]]) > size), ())


def _mean(values):
    return sum(values) / len(values) if values else 0.0


def _std(values):
    mean = _mean(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
