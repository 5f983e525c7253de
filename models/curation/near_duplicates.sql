{{ config(materialized="delta") }}

with contents as (

    select distinct content_sha256 from {{ ref("trajectories") }}

),

links as (

    select
        content_sha256,
        {{ each_of("links") }} as link,
    from {{ ref("near_duplicate_links") }}

),

-- Links of contents that are gone are left out; `near_duplicate_links` keeps them.
edges as (

    select
        content_sha256 as one,
        link.content_sha256 as other,
        link.similarity,
    from links
    where
        content_sha256 in (select content_sha256 from contents)
        and link.content_sha256 in (select content_sha256 from contents)

),

ends as (

    select
        one as content_sha256,
        similarity,
    from edges
    union all
    select
        other as content_sha256,
        similarity,
    from edges

),

-- Numbers in order of the hashes: the smallest number of a cluster is its smallest hash.
nodes as (

    select
        content_sha256,
        max(similarity) as similarity,
        row_number() over (order by content_sha256) - 1 as node,
    from ends
    group by content_sha256

),

graph as (

    select connected_components({{ edge_list("one.node", "other.node") }}) as components
    from edges
    inner join nodes as one on edges.one = one.content_sha256
    inner join nodes as other on edges.other = other.content_sha256

),

components as (

    select {{ each_of("components") }} as component
    from graph

),

clustered as (

    select
        nodes.content_sha256,
        first.content_sha256 as cluster_id,
        count(*) over (partition by first.content_sha256) as cluster_size,
        nodes.similarity,
    from components
    inner join nodes on components.component.node = nodes.node
    inner join nodes as first on components.component.smallest = first.node

)

select * from clustered
