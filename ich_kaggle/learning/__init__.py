"""The slice level: models, augmentation, data loading, training and prediction with torch."""
