"""Keys of a run on recordings of an event camera."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from ttfs_triton.data.events import MAX_WINDOWS, EventWindows, Size

_IMAGE_KEYS = (  # which mean nothing for events
    *("dataset", "image_column", "label_column", "image_size", "random_resized_crop", "streaming"),
    *("auto_augment", "trivial_augment"),
)


class EventOptions(BaseModel):
    """What becomes of recordings; see `ttfs_triton.data.events`."""

    event_windows: int | None = Field(None, ge=1, le=MAX_WINDOWS)
    """Windows of a recording: data_dir holds those of an event camera (N-MNIST or DVS-Gesture as published, class
    folders of .bin or .npz files), and in each window, the first event of a pixel and polarity is a spike. Default:
    data_dir holds images."""
    event_window_us: int | None = Field(None, ge=1)
    """Length of such a window in microseconds. Default: the recording's own duration, divided."""
    event_pool: int = Field(1, ge=1)
    """Pixels of the sensor, a side, that become one, which takes their earliest event."""
    event_sensor: tuple[Size, Size] | None = None
    """Height and width of the sensor in pixels. Default: those of N-MNIST or DVS-Gesture."""

    @model_validator(mode="after")
    def _of_events(self) -> Self:
        keys = _IMAGE_KEYS if self.events is not None else EventOptions.model_fields
        fields = type(self).model_fields
        given = ", ".join(name for name in keys if name in fields and getattr(self, name) != fields[name].default)
        if given and self.events is not None:
            raise ValueError(f"event_windows: leave {given} out; events have no colours, files and columns")
        if given:
            raise ValueError(f"{given} must go with event_windows: recordings become images by windows")
        return self

    @property
    def events(self) -> EventWindows | None:
        """What becomes of recordings, None of images."""
        if self.event_windows is None:
            return None
        return EventWindows(self.event_windows, self.event_window_us, self.event_pool, self.event_sensor)
