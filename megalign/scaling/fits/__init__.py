"""What a ladder's measurements say of scale: curves with intervals, gains, and where the data support neither. No torch."""
