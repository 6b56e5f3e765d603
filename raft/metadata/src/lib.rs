//! What the cluster agrees on: Image + Command -> Image + Delta, pure.
