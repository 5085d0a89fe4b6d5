"""Parity: a layout computes what one process computes, in losses, gradient norms and every parameter.

All three are compared because known faults show in only one of them: a pipeline that scales gradients wrongly
under accumulation (gradient norm), a dropped micro-batch (loss), clipping that forgets an axis or tied
embeddings that drift apart (parameters).
"""
