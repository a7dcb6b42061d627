"""Any head CT, read with a bundle of models; Kaggle's test set in a kernel too."""
