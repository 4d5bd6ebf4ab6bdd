"""What an access to memory costs: more, the larger the memory that holds the number."""

from __future__ import annotations

from dataclasses import dataclass

from ttfs_triton.hardware.energy.prices import Price, Range, Status, weakest


@dataclass(frozen=True)
class Memory:
    """On-chip memories, one for the weights and one for the states of each layer.

    Attributes:
        points: (size in bytes, price of one access in pJ), by rising size.
        word_bits: what one access moves.
        packed: whether numbers narrower than a word share an access (contiguous, aligned). If not, each number is one
            access, as Lemaire et al. count.
        addressing: whether computing addresses is charged, as one accumulate an access by an event.
    """

    points: tuple[tuple[int, Price], ...]
    word_bits: int = 64
    packed: bool = False
    addressing: bool = False

    def holds(self, size_bytes: float) -> bool:
        """Whether a price covers a memory of this size; larger ones are charged as banks of the largest."""
        return size_bytes <= self.points[-1][0]

    def access(self, size_bytes: float, bits: int) -> Price:
        """The price of reading or writing one number.

        Between two sizes the price is interpolated linearly in bytes, below the smallest it is the smallest's. A memory
        beyond the largest is banks of the largest: its wires are not counted, so the high end continues the line.
        The low end has words packed full, the high end one number an access.

        Args:
            size_bytes: of the memory that holds the number.
            bits: of the number.
        Returns:
            pJ a number, with the weakest status that went into it.
        """
        amount = self._at(size_bytes)
        words = max(1.0, bits / self.word_bits)
        share = bits / self.word_bits
        source = self.points[0][1].source
        note = f"{size_bytes / 1024:,.1f} kB, {bits} bits a number"
        if not self.holds(size_bytes):
            note += f"; banks of {self.points[-1][0] / 1024:,.0f} kB"
        return Price(
            value=amount.nominal * (share if self.packed else words),
            low=amount.low * share,
            high=amount.high * words,
            unit="pJ",
            status="assumed" if not self.holds(size_bytes) else self._status(),
            source=source,
            note=note,
        )

    def _status(self) -> Status:
        status = weakest(price.status for _, price in self.points)
        assert status is not None
        return status

    def _at(self, size_bytes: float) -> Range:
        """Low, nominal and high price of a full access, pJ."""
        sizes = [size for size, _ in self.points]
        prices = [price.amount for _, price in self.points]
        assert all(price is not None for price in prices)
        known: list[Range] = [price for price in prices if price is not None]
        if size_bytes <= sizes[0] or len(sizes) == 1:
            return known[0]
        above = next((index for index, size in enumerate(sizes) if size_bytes <= size), len(sizes) - 1)
        weight = (size_bytes - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        low, nominal, high = (
            getattr(known[above - 1], end) * (1 - weight) + getattr(known[above], end) * weight
            for end in ("low", "nominal", "high")
        )
        if weight > 1:
            return Range(known[-1].low, known[-1].nominal, max(known[-1].high, high))
        return Range(low, nominal, high)
