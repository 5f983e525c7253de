"""The trajectory browser: `trajlake ui`, pages over the lake for one who looks at trajectories.

    command    the options, the address, the token
    app        which address shows what; one function for each page
    guard      who is let in, and the headers that every answer has
    tables     Delta tables, each at the version that was newest when a request began
    rows       one narrow row per trajectory in a file of DuckDB's, to filter, sort and count by
    search     the full-text index, kept beside the database file
    look       all about one trajectory, and two side by side
    labels     what people say of a trajectory
    overview   figures of the whole lake

Everything is read from Delta tables alone, never from the database file that a build locks, and
nothing is written but labels, and the rows and the index, which are copies. Texts of trajectories
are untrusted: `orchestration.pages` makes them harmless, `guard` has the policy for what would slip
through.
"""
