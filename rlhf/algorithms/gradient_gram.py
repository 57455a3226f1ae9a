"""Inner products of the tokens' gradients by the LM head, for few tokens: N x N numbers without an N x V tensor.

With g_i the gradient of log p(a_i) by W: <g_i, g_j> = (h_i . h_j) (v_i . v_j), v = [k = a] - p (times the logits'
slope). A step lr sum_i c_i g_i of plain gradient ascent changes token s by delta_s = lr sum_i c_i <g_i, g_s>: this
matrix says how tokens help or undo each other.
"""

import torch
from torch import Tensor

from rlhf.algorithms.moment_stream import MomentStream
from rlhf.algorithms.output_head import OutputHead, chunk_sizes, scores_, slices


@torch.no_grad()
def score_gram(
    head: OutputHead,
    hidden_ND: Tensor,
    actions_N: Tensor,
    log_normalizer_N: Tensor,
    *,
    token_chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> Tensor:
    """<grad log p(a_i), grad log p(a_j)> by the head's weight (and bias), (N, N).

    `log_normalizer_N`: from `token_shifts`. Memory O(N^2 + token_chunk x vocab_chunk). The gradients of the tokens'
    objectives have the Gram matrix phi'_i phi'_j times this one.
    """
    count = len(hidden_ND)
    token_rows, vocab_rows = chunk_sizes(hidden_ND.device, token_chunk, vocab_chunk)
    # all tokens meet in one block, so it holds fewer rows of the vocabulary
    chunks = (max(1, count), max(1, min(vocab_rows, token_rows * vocab_rows // max(1, count))))
    with torch.autocast(hidden_ND.device.type, enabled=False):
        stream = MomentStream(head, hidden_ND, actions_N, chunks)
        input_ND = head.inputs(hidden_ND)
        score_NN = torch.zeros(count, count, dtype=head.dtype, device=hidden_ND.device)
        for columns in slices(head.vocabulary, chunks[1]):
            logits_Nb, slope_Nb = stream.logits(input_ND, head.weight[columns])
            score_Nb = scores_(logits_Nb, log_normalizer_N, actions_N - columns.start)
            if slope_Nb is not None:
                score_Nb.mul_(slope_Nb)
            score_NN.addmm_(score_Nb, score_Nb.t())
        return score_NN.mul_(input_ND @ input_ND.t())
