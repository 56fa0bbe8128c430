"""Networks that Keras lacks, written like those of `keras.applications`, and weight files put into networks."""
