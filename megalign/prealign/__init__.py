"""PreAlign (arXiv 2407.16222): alignment table, word batches, contrastive loss and input-only codeswitching.

Only `megalign.prealign.loss` needs torch.
"""
