{{ config(materialized="delta", strategy="upsert", unique_key="content_sha256") }}
{%- set key = link_key() %}
{{ rebuild_on(key) }}
{%- set is_added_to = is_delta_incremental(key) %}

with contents as (

    select distinct content_sha256 from {{ ref("trajectories") }}

),

{% if is_added_to -%}
linked as (

    select content_sha256 from {{ this }}

),

-- A link to what is gone may have been the only way from here to others of the cluster, so its
-- owner is compared again.
broken as (

    select distinct links.content_sha256
    from
        (
            select
                content_sha256,
                {{ each_of("links") }} as link,
            from {{ this }}
        ) as links
    left join contents on links.link.content_sha256 = contents.content_sha256
    where contents.content_sha256 is null

),

settled as (

    select linked.content_sha256
    from linked
    left join broken on linked.content_sha256 = broken.content_sha256
    where broken.content_sha256 is null

),
{%- else -%}
settled as (

    select content_sha256
    from contents
    where 1 = 0

),
{%- endif %}

pending as (

    select signatures.content_sha256
    from {{ ref("content_signatures") }} as signatures
    inner join contents on signatures.content_sha256 = contents.content_sha256
    left join settled on signatures.content_sha256 = settled.content_sha256
    where
        signatures.signature is not null
        and settled.content_sha256 is null

),

{% if is_added_to -%}
pending_hashes as (

    select distinct band_hash
    from
        (
            select {{ each_of("band_hashes") }} as band_hash
            from {{ ref("content_signatures") }}
            where content_sha256 in (select content_sha256 from pending)
        )

),

{% endif -%}

-- Hashes alone first: one for each band of every content, most of them without a second.
crowded as (

    select band_hash
    from
        (
            select {{ each_of("band_hashes") }} as band_hash
            from {{ ref("content_signatures") }}
            where content_sha256 in (select content_sha256 from contents)
        )
    {% if is_added_to -%}
    where band_hash in (select band_hash from pending_hashes)
    {% endif -%}
    group by band_hash
    having count(*) > 1

),

members as (

    select
        each.content_sha256,
        each.band_hash,
        pending.content_sha256 is not null as is_pending,
    from
        (
            select
                content_sha256,
                {{ each_of("band_hashes") }} as band_hash,
            from {{ ref("content_signatures") }}
            where content_sha256 in (select content_sha256 from contents)
        ) as each
    left join pending on each.content_sha256 = pending.content_sha256
    where each.band_hash in (select band_hash from crowded)

),

-- The representative is one that was there before, if any was; each band chooses another one,
-- so that a text that is unlike one representative meets others.
buckets as (

    select
        band_hash,
        count(*) <= {{ var("near_duplicate_bucket") }} as is_small,
        coalesce(
            min_by(content_sha256, draw) filter (where not is_pending),
            min_by(content_sha256, draw)
        ) as representative,
    from
        (
            select
                *,
                md5(concat(cast(band_hash as {{ dbt.type_string() }}), content_sha256)) as draw,
            from members
        )
    group by band_hash

),

-- Whom others of a bucket are compared with: everyone in a small one, else its representative.
partners as (

    select
        members.content_sha256,
        members.band_hash,
        members.is_pending,
        buckets.is_small,
    from members
    inner join buckets using (band_hash)
    where buckets.is_small or members.content_sha256 = buckets.representative

),

pairs as (

    select distinct
        members.content_sha256,
        partners.content_sha256 as partner_sha256,
    from members
    inner join partners using (band_hash)
    where
        members.is_pending
        and members.content_sha256 <> partners.content_sha256
        and (
            not partners.is_pending
            or not partners.is_small
            or members.content_sha256 > partners.content_sha256
        )

),

compared as (

    select
        pairs.content_sha256,
        pairs.partner_sha256,
        signature_similarity(one.signature, other.signature) as similarity,
    from pairs
    inner join {{ ref("content_signatures") }} as one
        on pairs.content_sha256 = one.content_sha256
    inner join {{ ref("content_signatures") }} as other
        on pairs.partner_sha256 = other.content_sha256

),

found as (

    select
        content_sha256,
        {{ ordered_list(
            near_duplicate_link("partner_sha256", "similarity"), ["partner_sha256"]
        ) }} as links,
    from compared
    where similarity >= {{ near_duplicate_similarity() }}
    group by content_sha256

),

described as (

    select
        pending.content_sha256,
        coalesce(found.links, {{ no_links() }}) as links,
    from pending
    left join found on pending.content_sha256 = found.content_sha256

)

select * from described
