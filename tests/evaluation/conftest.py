import numpy as np
import pytest


@pytest.fixture(scope="session")
def digits():
    """Real 8x8 digits: (train, test), each (images uint8, labels); 297 test images, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.round(data.images[..., None] * 255 / 16).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        images, data.target, test_size=297, stratify=data.target, random_state=0
    )
    return (train, train_labels), (test, test_labels)
