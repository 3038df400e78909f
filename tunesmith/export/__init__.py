"""Taking a run away: merged weights or an adapter, with a card, checked against what it came from."""
