"""Networks that Keras lacks, written like those of `keras.applications`; and loading weights into any network."""
