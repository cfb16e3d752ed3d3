"""Cross-validation: one Fabric, a new model for each fold, and the mean of what they reach.

python examples/fabric/k_fold.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fulmen.fabric import Fabric

NUM_FOLDS = 5


def load_data() -> TensorDataset:
    """Is a tumour benign? 569 patients, 30 measurements of each."""
    patients = load_breast_cancer()
    features = torch.from_numpy(patients.data).float()
    features = (features - features.mean(0)) / features.std(0)
    return TensorDataset(features, torch.from_numpy(patients.target))


def train_fold(fabric: Fabric, train: Subset, validation: Subset) -> float:
    fabric.seed_everything(1, verbose=False)  # folds differ in their data, and in nothing else
    train_loader, validation_loader = fabric.setup_dataloaders(
        DataLoader(train, batch_size=32, shuffle=True), DataLoader(validation, batch_size=64)
    )
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    for _ in range(10):
        for features, labels in train_loader:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(features), labels))
            optimizer.step()
    with torch.no_grad():
        hits = sum((model(features).argmax(dim=-1) == labels).sum().item() for features, labels in validation_loader)
    return hits / len(validation)


def main() -> None:
    fabric = Fabric()
    data = load_data()
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0).split(*data.tensors)
    accuracies = []
    for number, (train, validation) in enumerate(folds):
        accuracies.append(train_fold(fabric, Subset(data, train), Subset(data, validation)))
        fabric.print(f"fold {number}: accuracy {accuracies[-1]:.3f}")
    mean, spread = torch.tensor(accuracies).mean(), torch.tensor(accuracies).std()
    fabric.print(f"accuracy {mean:.3f}, give or take {spread:.3f}")


if __name__ == "__main__":
    main()
